"""Is a closed shard whole, and the manifest's?"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from pipeline.archive import schema
from pipeline.archive.codec import ready
from pipeline.archive.manifest import Manifest
from pipeline.errors import ArchiveError


def check_shard(
    path: Path, manifest: Manifest, start: int, stop: int, *, every_row: bool = True
) -> None:
    """Check that a closed shard belongs to the manifest, that every chunk of it was written, and
    that its rows (all of them, or the last) can be read back.

    Reading verifies the checksum of every chunk.

    Raises:
        ArchiveError: naming the file and the first fault.
    """
    ready(layer.codec for layer in manifest.layers)
    try:
        with h5py.File(path, "r") as file:
            found = (file.attrs["fingerprint"], int(file.attrs["start"]), int(file.attrs["stop"]))
            if found != (manifest.fingerprint, start, stop):
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
                _read_through(dataset, 0 if every_row else rows - 1)
            if list(file[schema.SAMPLES_GROUP]["id"].asstr()[()]) != list(
                manifest.samples[start:stop]
            ):
                raise ArchiveError(f"{path}: its sample ids are not the manifest's")
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise ArchiveError(f"{path}: damaged shard ({error})") from error


def _read_through(dataset: h5py.Dataset, first: int) -> None:
    """Read every chunk from row `first` on; all must have been written, checksums must hold."""
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
