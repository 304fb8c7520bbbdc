"""Structure: links and sizes that an HDF5 file of an archive never has."""

from __future__ import annotations

import re
from pathlib import Path

import h5py

from pipeline.foundation.errors import ArchiveError

_SHARD_NAME = re.compile(r"shards/\d{5,}\.h5")
_MOST_TIMES_STORED = 1100  # deflate's best ratio is about 1030
_SMALL = 64 * 2**20
_DEEPEST = 8  # an archive's own groups are four deep
_MOST_OBJECTS = 100_000  # about 25 a layer


def check_structure(file: h5py.File, path: Path, *, virtual: bool) -> list[h5py.Dataset]:
    """Refuse links and sizes that an archive never has; return the datasets with data of their own.

    Raises:
        ArchiveError: naming the first.
    """
    size = path.stat().st_size
    names: list[str] = []

    def look(name: str, link: object) -> str | None:
        if isinstance(link, (h5py.SoftLink, h5py.ExternalLink)):
            kind = "an external" if isinstance(link, h5py.ExternalLink) else "a soft"
            return f"/{name} is {kind} link"
        if name.count("/") >= _DEEPEST:
            return f"its groups are more than {_DEEPEST} deep"
        if len(names) >= _MOST_OBJECTS:
            return f"it holds more than {_MOST_OBJECTS} objects"
        names.append(name)
        return None  # go on

    fault = file.visititems_links(look)
    if fault:
        raise ArchiveError(f"{path}: rejected, {fault}")
    items = [file[name] for name in names]  # one that cannot be opened is an error
    datasets = [item for item in items if isinstance(item, h5py.Dataset)]
    return [data for data in datasets if _check_dataset(data, path, size, virtual=virtual)]


def _check_dataset(dataset: h5py.Dataset, path: Path, size: int, *, virtual: bool) -> bool:
    """Check one dataset; tell whether it has data of its own."""
    if dataset.external:
        raise ArchiveError(f"{path}: rejected, {dataset.name} keeps its data in another file")
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            if not virtual or not _SHARD_NAME.fullmatch(source.file_name):
                raise ArchiveError(
                    f"{path}: rejected, {dataset.name} takes its data from {source.file_name!r}"
                )
        return False
    if dataset.nbytes > max(_SMALL, _MOST_TIMES_STORED * size):
        raise ArchiveError(
            f"{path}: rejected, {dataset.name} claims {dataset.nbytes} bytes in a file of {size}"
        )
    return True
