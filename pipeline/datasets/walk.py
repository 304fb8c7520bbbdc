"""Image files below a folder, in the same order on every machine."""

import logging
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePath

from pipeline.common.errors import ConfigError, plural, reraised
from pipeline.datasets.base import nfc
from pipeline.datasets.raster import image_endings

log = logging.getLogger(__name__)

_NOT_PHOTOS = frozenset(
    (
        "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot",  # network storage
        "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found",
    )
)  # fmt: skip
"""Folders that archivers, file systems and network storage create."""


def is_litter(name: str) -> bool:
    """Return whether a file or folder is hidden or created by the system.

    >>> [is_litter(name) for name in (".thumbnails", "@eaDir", "cats")]
    [True, True, False]
    """
    return name.startswith(".") or name in _NOT_PHOTOS


class ImageFiles:
    """The regular image files below `root`, sorted by the components of their paths.

    Iteration reads folders lazily. Hidden folders, system folders and matches of `exclude` are
    skipped. A folder that is reached twice (a loop of links) is entered once, under its real path
    if that is below `root`.
    """

    def __init__(self, root: Path, exclude: Sequence[str] = ()) -> None:
        """Set the folder, and the globs (names or paths below `root`) to skip."""
        self.root = root
        self.exclude = [
            nfc(text).removeprefix("./").removeprefix("**/").rstrip("/") for text in exclude
        ]
        self._matched: set[str] = set()
        self._ignored = 0

    def take(self, limit: int | None) -> list[Path]:
        """Return the first `limit` image files."""
        files = list(islice(self._below(self.root, set()), limit))
        if limit is None or len(files) < limit:  # every folder was read
            for pattern in {*self.exclude} - self._matched:
                log.warning("dataset.exclude: nothing below %s matches %r", self.root, pattern)
        if self._ignored:
            log.info(
                "%s: ignored %s (not regular, or with another ending)",
                self.root,
                plural(self._ignored, "file"),
            )
        if not files:
            raise ConfigError(
                f"dataset.root: no image files in {self.root} "
                f"({plural(self._ignored, 'other file')}; known endings are .jpg .png .webp .tif "
                ".bmp .gif and Pillow's others; hidden folders and dataset.exclude are skipped)"
            )
        return files

    def class_folders(self, files: Sequence[Path]) -> list[str]:
        """Return the sorted names of the folders in `root` that contain an image."""
        parts = [file.relative_to(self.root).parts for file in files]
        names = {nfc(path[0]) for path in parts if len(path) > 1}
        for entry in self._entries(self.root):
            if nfc(entry.name) not in names and self._is_entered(entry):
                below = self._below(Path(entry.path), {_identity(self.root)}, scan=True)
                if next(below, None):
                    names.add(nfc(entry.name))
        return sorted(names)

    def _below(
        self, folder: Path, entered: set[tuple[int, int]], *, scan: bool = False
    ) -> Iterator[Path]:
        """Yield the images below a folder, each folder once; with `scan`, unsorted and silently."""
        with reraised(f"dataset.root: {folder} cannot be read", of=OSError):
            if _identity(folder) in entered:
                if not scan:
                    log.warning("%s: ignored: this folder was already read through a link", folder)
                return
            entered.add(_identity(folder))
            endings, entries = image_endings(), self._entries(folder)
            if not scan:
                entries = iter(sorted(entries, key=lambda entry: (nfc(entry.name), entry.name)))
            for entry in entries:
                path = Path(entry.path)
                if self._is_entered(entry):
                    yield from self._below(path, entered, scan=scan)
                elif path.suffix.lower() in endings and path.is_file():
                    yield path
                elif not scan:
                    self._ignored += 1

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not self._is_left_out(Path(entry.path)):
                    yield entry

    def _is_left_out(self, path: PurePath) -> bool:
        if is_litter(path.name):
            return True
        if not self.exclude:
            return False
        texts = nfc(path.name), nfc(path.relative_to(self.root).as_posix())
        matching = {
            pattern for pattern in self.exclude if any(fnmatchcase(text, pattern) for text in texts)
        }
        self._matched |= matching
        return bool(matching)

    def _is_entered(self, entry: os.DirEntry[str]) -> bool:
        """Return whether an entry is a folder to read, not a link to one that is read anyway."""
        if not entry.is_symlink():
            return entry.is_dir()
        path, root = Path(entry.path), self.root.resolve()
        if not path.is_dir():  # a dangling or circular link
            return False
        target = path.resolve()
        if not target.is_relative_to(root):
            return True
        parts = target.relative_to(root).parts
        return any(
            self._is_left_out(self.root.joinpath(*parts[: n + 1])) for n in range(len(parts))
        )


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
