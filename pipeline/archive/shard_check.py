"""Is a closed shard whole, and the manifest's?"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from pipeline.archive import schema
from pipeline.archive.codec import ready
from pipeline.archive.manifest import Manifest
from pipeline.archive.safety import damage_named, open_safely
from pipeline.errors import ArchiveError


def check_shard(
    path: Path, manifest: Manifest, start: int, stop: int, *, own: bool = False
) -> None:
    """Check that a closed shard belongs to the manifest, that every chunk of it was written, and
    that its rows can be read back.

    Reading verifies the checksum of every chunk.

    Args:
        path: of the shard.
        manifest: of the archive.
        start, stop: the rows that it must hold.
        own: whether this process has just written it: its last row is then read only, where a file
            that lost something has lost it.

    Raises:
        ArchiveError: naming the file and the first fault.
    """
    ready(layer.codec for layer in manifest.layers)
    with (
        damage_named(f"{path}: damaged shard"),
        open_safely(path, own=own) as file,
    ):
        found = (file.attrs["fingerprint"], int(file.attrs["start"]), int(file.attrs["stop"]))
        if found != (manifest.fingerprint_at(start), start, stop):
            raise ArchiveError(f"{path}: belongs to another archive or other rows")
        rows = stop - start
        expected: dict[str, tuple[tuple[int, ...], str]] = {
            f"{schema.INPUTS_GROUP}/{schema.IMAGE}": ((rows, *manifest.image_shape), "uint8")
        }
        for layer in manifest.layers:
            name = f"{schema.layer_group(layer.name)}/{schema.ACTIVATION}"
            expected[name] = ((rows, *layer.shape), layer.dtype)
        for name, (shape, dtype) in expected.items():
            dataset = file[name]
            if dataset.shape != shape or dataset.dtype != np.dtype(dtype):
                raise ArchiveError(
                    f"{path}: {name} is {dataset.dtype}{dataset.shape}, not {dtype}{shape}"
                )
            _read_through(dataset, rows - 1 if own else 0)
        ids = list(file[schema.SAMPLES_GROUP]["id"].asstr()[()])
        if ids != list(manifest.samples[start:stop]):
            raise ArchiveError(f"{path}: its sample ids are not the manifest's")


def _read_through(dataset: h5py.Dataset, first: int) -> None:
    """Read every chunk from row `first` on; all must have been written, checksums must hold."""
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
    step = max(1, (16 * 2**20 * dataset.shape[0]) // max(1, dataset.nbytes))
    for row in range(first, dataset.shape[0], step):
        dataset[row : row + step]
