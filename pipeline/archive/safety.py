"""Safety: what a file from elsewhere may not contain, checked before any of its data are read.

An HDF5 file can point at other files (external links, external storage, virtual sources), inside
itself (soft links), and declare sizes that no memory holds. Nothing of that is ever followed.
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py

from pipeline.errors import ArchiveError

_SHARD_NAME = re.compile(r"shards/\d{5,}\.h5")
_MOST_TIMES_STORED = 1100  # deflate's best ratio is about 1030
_SMALL = 64 * 2**20


def open_safely(path: Path, *, virtual: bool = False) -> h5py.File:
    """Open an HDF5 file read-only after checking its structure.

    Args:
        path: the file.
        virtual: whether its datasets may be virtual, over `shards/NNNNN.h5` beside it.

    Raises:
        ArchiveError: naming the file and what is wrong with it.
    """
    try:
        if not path.is_file():
            raise ArchiveError(f"{path}: missing, or not a regular file")
        file = h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise ArchiveError(f"{path}: cannot be read as HDF5 ({error})") from error
    try:
        _check(file, path, virtual=virtual)
    except ArchiveError:
        file.close()
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        file.close()
        raise ArchiveError(f"{path}: damaged HDF5 structure ({error})") from error
    return file


def _check(file: h5py.File, path: Path, *, virtual: bool) -> None:
    size = path.stat().st_size
    links: list[tuple[str, object]] = []
    file.visititems_links(lambda name, link: links.append((name, link)))
    for name, link in links:
        if isinstance(link, (h5py.SoftLink, h5py.ExternalLink)):
            kind = "an external" if isinstance(link, h5py.ExternalLink) else "a soft"
            raise ArchiveError(f"{path}: rejected, /{name} is {kind} link")
    for name, _ in links:
        item = file[name]
        if isinstance(item, h5py.Dataset):
            _check_dataset(item, path, size, virtual=virtual)


def _check_dataset(dataset: h5py.Dataset, path: Path, size: int, *, virtual: bool) -> None:
    if dataset.external:
        raise ArchiveError(f"{path}: rejected, {dataset.name} keeps its data in another file")
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            if not virtual or not _SHARD_NAME.fullmatch(source.file_name):
                raise ArchiveError(
                    f"{path}: rejected, {dataset.name} takes its data from {source.file_name!r}"
                )
        return
    if dataset.nbytes > max(_SMALL, _MOST_TIMES_STORED * size):
        raise ArchiveError(
            f"{path}: rejected, {dataset.name} claims {dataset.nbytes} bytes in a file of {size}"
        )
