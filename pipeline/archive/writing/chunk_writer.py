"""Writing of compressed chunks: on every core, outside HDF5's lock."""

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
    """Writes rows of datasets; compresses on every core."""

    def __init__(self) -> None:
        """Start without threads; they begin with the first rows."""
        self._pool = ThreadPoolExecutor(cores())

    def write(self, dataset: h5py.Dataset, start: int, rows: Array, codec: str) -> None:
        """Write rows from `start` on.

        Chunks that several samples share go through HDF5, since they may be filled in parts.
        """
        if dataset.chunks[0] != 1:
            space = dataset.id.get_space()
            space.select_hyperslab((start, *[0] * (rows.ndim - 1)), rows.shape)
            kind = dataset.id.get_type()  # of the rows too: HDF5 converts nothing
            dataset.id.write(h5py.h5s.create_simple(rows.shape), space, rows, kind)
            return
        places = list(_chunks(dataset.chunks, rows))
        ready_made = self._pool.map(lambda place: compress(place[1], codec), places)
        for (offset, _), content in zip(places, ready_made, strict=True):
            dataset.id.write_direct_chunk((start + offset[0], *offset[1:]), content)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _chunks(shape: tuple[int, ...], rows: Array) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield the offset and the values of every chunk, those at an edge padded with zeros."""
    steps = [range(0, size, step) for size, step in zip(rows.shape, shape, strict=True)]
    for offset in itertools.product(*steps):
        part = rows[tuple(slice(at, at + step) for at, step in zip(offset, shape, strict=True))]
        if part.shape != shape:
            whole = np.zeros(shape, rows.dtype)
            whole[tuple(slice(size) for size in part.shape)] = part
            part = whole
        yield offset, part
