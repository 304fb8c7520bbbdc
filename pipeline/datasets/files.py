"""Datasets of image files: reading and content digests."""

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import ConfigError, SampleError
from pipeline.datasets.base import readable_name
from pipeline.datasets.decoding import read_regular
from pipeline.datasets.samples import Sample


@dataclass(frozen=True)
class FileImages:
    """An opened dataset of image files: `paths[i]` holds `samples[i]`."""

    samples: Sequence[Sample]
    paths: Sequence[Path]

    def read(self, index: int) -> bytes:
        return read_regular(self.paths[index])

    def digest(self, count: int) -> str:
        return files_digest(self.paths[:count])


_DIGESTS: dict[str, str] = {}
"""Digest of file times and sizes → content digest, for the jobs of a sweep in one process."""
_SETTLED = 2 * 10**9  # ns; a file that changes twice within a clock tick keeps its times


def files_digest(paths: Sequence[Path]) -> str:
    """Return a digest over the sha256 of every file's content, in order."""
    states, newest = hashlib.sha256(), 0
    for path in paths:
        state = _state_of(path)
        newest = max(newest, 0, *state[2:])
        states.update(f"{path}\0{state}".encode("utf-8", "surrogateescape"))
    state_key, settled = states.hexdigest(), time.time_ns() - newest > _SETTLED
    if state_key in _DIGESTS:
        return _DIGESTS[state_key]
    with ThreadPoolExecutor(8) as pool:
        digest = hashlib.sha256("".join(pool.map(_digest_of, paths)).encode()).hexdigest()
    if settled:
        _DIGESTS[state_key] = digest
    return digest


def _state_of(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return (0,)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest_of(path: Path) -> str:
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except SampleError:
        return "unreadable"


def existing_folder(root: str) -> Path:
    """Return the dataset's `root` as the path of an existing folder."""
    path = Path(root).expanduser()
    if not root:
        raise ConfigError("dataset.root: no image folder is set; use e.g. dataset.root=~/photos")
    with suppress(OSError):  # raised again, and named, when the folder is read
        if not path.is_dir():
            state = "is not a folder" if path.exists() else "does not exist"
            where = "" if path.is_absolute() else f" in {Path.cwd()}"
            raise ConfigError(f"dataset.root: {path} {state}{where}")
    return path


def sample_of(path: Path, root: Path, *, label: int = -1, label_name: str = "") -> Sample:
    """Return the sample of a file; its id is the path below `root`, with forward slashes."""
    return Sample(
        id=readable_name(path.relative_to(root).as_posix()),
        label=label,
        label_name=label_name,
        path=readable_name(str(path)),
    )
