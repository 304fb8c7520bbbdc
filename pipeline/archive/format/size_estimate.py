"""Estimated size of an archive, and free disk space."""

import math
import shutil
from pathlib import Path

from pipeline.archive.format.jpeg import COMPRESSION
from pipeline.archive.format.manifest import FULL, JPEG, Manifest
from pipeline.common.places import Place, scratch_folder

MARGIN = 1.05
_PER_SAMPLE_TABLE = 400  # ids, labels, paths and chunk indices (approximate)
_PER_SHARD = 48 * 2**10  # manifest, tables, filters
_PER_LAYER_AND_SHARD = 12 * 2**10  # HDF5 metadata: measured 10 to 11 kB


def input_bytes(inputs: str, shape: tuple[int, int, int]) -> int:
    """Return bytes per sample of the inputs for a value of `Manifest.inputs`; JPEG: an estimate."""
    return {FULL: math.prod(shape), JPEG: math.prod(shape) // COMPRESSION}.get(inputs, 0)


def row_bytes(manifest: Manifest) -> dict[str, int]:
    """Return bytes per sample of every layer and of `inputs`, with per-sample statistics."""
    sizes = {"inputs": input_bytes(manifest.inputs, manifest.image_shape)}
    for layer in manifest.layers:
        figures = 0 if layer.vector else 2 * 4 * layer.channels
        sizes[layer.name] = layer.sample_bytes + figures
    return sizes


def shard_bytes(manifest: Manifest, number: int) -> int:
    """Return the expected file size of a shard."""
    start, stop = manifest.shards[number]
    rows = (stop - start) * (sum(row_bytes(manifest).values()) + _PER_SAMPLE_TABLE)
    return rows + _PER_SHARD + _PER_LAYER_AND_SHARD * len(manifest.layers)


def free_bytes(path: Place) -> int:
    """Return the free space on the disk of `path`, which need not exist, or of its scratch."""
    folder = scratch_folder(path) or Path(str(path)).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
