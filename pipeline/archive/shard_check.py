"""Is a closed shard whole, and the manifest's?"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from pipeline.archive import schema
from pipeline.archive.codec import ready
from pipeline.archive.layout import row_names
from pipeline.archive.manifest import Manifest
from pipeline.archive.row_reader import Checksums
from pipeline.archive.safety import damage_named, open_safely
from pipeline.archive.seal import Seal, checksum_name, is_sealed, read_seal
from pipeline.archive.shards import check_seal, row_shapes
from pipeline.foundation.errors import ArchiveError

_STEP = 16 * 2**20


def check_shard(
    path: Path, manifest: Manifest, start: int, stop: int, *, own: bool = False, rows: bool = True
) -> None:
    """Check that a closed shard belongs to the manifest, that every row of it was written, and that
    its rows can be read back as they were.

    Args:
        path: of the shard.
        manifest: of the archive.
        start, stop: the rows that it must hold.
        own: whether this process has just written it: its last row is then read only, where a file
            that lost something has lost it.
        rows: whether rows are read at all; those of version 1 are, in any case.

    Raises:
        ArchiveError: naming the file and the first fault.
    """
    ready(layer.codec for layer in manifest.layers)
    seal = read_seal(path) if is_sealed(path) else None
    if seal is not None:
        check_seal(path, seal, manifest, start, stop)
    with (
        damage_named(f"{path}: damaged shard"),
        open_safely(path, own=own) as file,
    ):
        found = (file.attrs["fingerprint"], int(file.attrs["start"]), int(file.attrs["stop"]))
        if found != (manifest.fingerprint_at(start), start, stop):
            raise ArchiveError(f"{path}: belongs to another archive or other rows")
        shapes = row_shapes(manifest)
        for name in row_names(manifest):
            dataset, (shape, dtype) = file[name], shapes[name]
            if dataset.shape != (stop - start, *shape) or dataset.dtype != dtype:
                raise ArchiveError(
                    f"{path}: {name} is {dataset.dtype}{dataset.shape}, not {dtype}{shape}"
                )
            first = stop - start - 1 if own else 0
            if seal is None:
                _check_chunks(dataset)
                _read_through(dataset, first)
            else:
                _check_place(dataset, seal, path)
                if rows:
                    sums = Checksums(path, name, start, file[checksum_name(name)][()])
                    _read_through(dataset, first, sums)
        ids = list(file[schema.SAMPLES_GROUP]["id"].asstr()[()])
        if ids != list(manifest.samples[start:stop]):
            raise ArchiveError(f"{path}: its sample ids are not the manifest's")


def _check_place(dataset: h5py.Dataset, seal: Seal, path: Path) -> None:
    """Check that rows lie where the seal has them, for readers with HDF5 and without it."""
    offset = None if dataset.chunks else dataset.id.get_offset()
    if offset != seal.rows.get(dataset.name, (None,))[0]:
        raise ArchiveError(f"{path}: damaged shard, {dataset.name} is not where its seal says")
    if dataset.chunks:
        _check_chunks(dataset)


def _check_chunks(dataset: h5py.Dataset) -> None:
    """Check that every chunk was written."""
    if dataset.chunks is None:
        raise ArchiveError(
            f"{dataset.file.filename}: {dataset.name} is not kept in "
            "chunks, so that it has no checksums"
        )
    expected = int(
        np.prod(
            [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
        )
    )
    if dataset.id.get_num_chunks() != expected:
        raise ArchiveError(
            f"{dataset.file.filename}: {dataset.name} lacks some of its {expected} chunks"
        )


def _read_through(dataset: h5py.Dataset, first: int, sums: Checksums | None = None) -> None:
    """Read every row from `first` on; checksums must hold."""
    step = max(1, (_STEP * dataset.shape[0]) // max(1, dataset.nbytes))
    for row in range(first, dataset.shape[0], step):
        values = dataset[row : row + step]
        if sums is not None:
            sums.compare(row, values)
