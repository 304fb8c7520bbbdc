"""Writing of compressed chunks on all cores, outside HDF5's lock."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np

from pipeline.archive.format.codec import compress
from pipeline.common.arrays import Array
from pipeline.common.machine import cores


class CompressedWriter:
    """Writer of the rows of compressed datasets."""

    def __init__(self) -> None:
        """Create the thread pool; its threads start with the first rows."""
        self._pool = ThreadPoolExecutor(cores())

    def write(self, dataset: h5py.Dataset, start: int, rows: Array, codec: str) -> None:
        """Write rows starting at `start`.

        Chunks shared by several samples are written through HDF5: they may be filled in steps.
        """
        if dataset.chunks[0] != 1:
            space = dataset.id.get_space()
            space.select_hyperslab((start, *[0] * (rows.ndim - 1)), rows.shape)
            memory_type = dataset.id.get_type()  # HDF5 converts nothing
            dataset.id.write(h5py.h5s.create_simple(rows.shape), space, rows, memory_type)
            return
        chunks = list(_chunks(dataset.chunks, rows))
        compressed = self._pool.map(lambda chunk: compress(chunk[1], codec), chunks)
        for (offset, _), content in zip(chunks, compressed, strict=True):
            dataset.id.write_direct_chunk((start + offset[0], *offset[1:]), content)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()


def _chunks(shape: tuple[int, ...], rows: Array) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield the offset and values of every chunk; chunks at an edge are padded with zeros."""
    starts = [range(0, size, step) for size, step in zip(rows.shape, shape, strict=True)]
    for offset in itertools.product(*starts):
        chunk = rows[tuple(slice(i, i + step) for i, step in zip(offset, shape, strict=True))]
        if chunk.shape != shape:
            padded = np.zeros(shape, rows.dtype)
            padded[tuple(slice(size) for size in chunk.shape)] = chunk
            chunk = padded
        yield offset, chunk
