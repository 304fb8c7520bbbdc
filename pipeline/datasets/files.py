"""Image files below a folder: found once, in a stable order, each regular file once."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.datasets.base import readable_name
from pipeline.foundation.errors import ConfigError, SampleError
from pipeline.inputs.decoding import read_regular
from pipeline.inputs.samples import Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileImages:
    """An opened dataset of image files: `paths[i]` holds `samples[i]`."""

    samples: Sequence[Sample]
    paths: Sequence[Path]

    def read(self, index: int) -> bytes:
        """See `Images.read`."""
        return read_regular(self.paths[index])

    def digest(self, count: int) -> str:
        """See `base.content_digest`."""
        return files_digest(self.paths[:count])


_KNOWN: dict[str, str] = {}
"""What files of these times and sizes hold: the jobs of a sweep in one process read them once."""
_SETTLED = 2 * 10**9  # ns; a file that changes again within a clock's tick keeps its times


def files_digest(paths: Sequence[Path]) -> str:
    """Return a digest over the sha256 of every file's content, in order."""
    states, newest = hashlib.sha256(), 0
    for path in paths:
        state = _state_of(path)
        newest = max(newest, 0, *state[2:])
        states.update(f"{path}\0{state}".encode("utf-8", "surrogateescape"))
    known, settled = states.hexdigest(), time.time_ns() - newest > _SETTLED
    if known in _KNOWN:
        return _KNOWN[known]
    with ThreadPoolExecutor(8) as pool:
        digest = hashlib.sha256("".join(pool.map(_digest_of, paths)).encode()).hexdigest()
    if settled:
        _KNOWN[known] = digest
    return digest


def _state_of(path: Path) -> tuple[int, ...]:
    """Return inode, size and times of a file."""
    try:
        found = path.stat()
    except OSError:
        return (0,)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest_of(path: Path) -> str:
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except SampleError:
        return "unreadable"


def image_endings() -> frozenset[str]:
    """Return the file name endings that Pillow reads, in lower case."""
    Image.init()
    readable = {
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }
    return frozenset(readable - {".pdf", ".mpg", ".mpeg", ".h5", ".hdf"})


def existing_folder(root: str, key: str) -> Path:
    """Return `root` as a path.

    Raises:
        ConfigError: when it is no readable folder; `key` names the configuration key.
    """
    path = Path(root).expanduser()
    if not root:
        raise ConfigError(f"{key}: name the folder of images, e.g. {key}=~/photos")
    if not path.is_dir():
        state = "is not a folder" if path.exists() else "does not exist"
        raise ConfigError(f"{key}: {path} {state}")
    return path


def find_images(root: Path) -> list[Path]:
    """Return every image file below `root`, sorted by its parts.

    Hidden files and folders are left out, a folder that is reached twice (a loop of links) is
    entered once, and what is no regular file (pipes, devices, broken links) is passed over; other
    files are counted and logged.

    Raises:
        ConfigError: when a folder cannot be read, or there is no image at all.
    """
    endings = image_endings()
    found: list[Path] = []
    ignored = 0
    for path in _walk(root, set()):
        if path.suffix.lower() in endings and path.is_file():
            found.append(path)
        else:
            ignored += 1
    if ignored:
        log.info(
            "%s: %d files with other endings, or no regular files, were left out", root, ignored
        )
    if not found:
        raise ConfigError(
            f"dataset.root: no image files in {root} "
            f"({ignored} other files; known endings are .jpg .png .webp .tif .bmp .gif and "
            "Pillow's others)"
        )
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in entered:
        log.warning("%s: the same folder was reached before (a link); left out", folder)
        return
    entered.add((status.st_dev, status.st_ino))
    try:
        # Real folders before links to folders, so that an image keeps its real place as its id.
        entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise ConfigError(f"dataset.root: {folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if path.is_dir():  # False for a link that leads nowhere or to itself
            yield from _walk(path, entered)
        else:
            yield path


def sample_of(path: Path, root: Path, *, label: int = -1, label_name: str = "") -> Sample:
    """Return the sample of a file: its id is the path below `root`, with forward slashes."""
    return Sample(
        id=readable_name(path.relative_to(root).as_posix()),
        label=label,
        label_name=label_name,
        path=readable_name(str(path)),
    )
