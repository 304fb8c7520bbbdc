"""Codecs: lossless compression of activations, outside HDF5's lock and on every core.

Chunks are shuffled and compressed here, by threads, and handed to HDF5 ready for the disk; readers
need nothing of this, HDF5's own filters undo it. A compressed chunk carries its own checksum
(Adler-32 in zlib's stream, XXH64 in zstd's frame), so damage shows to every reader.

Sources: HDF5 specification, IV.A.2.l (filter pipeline); RFC 1950 (zlib); RFC 8878 (zstd); filter
32015 of The HDF Group's registry.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import cache
from typing import Any

import h5py
import numpy as np

from pipeline.foundation.arrays import Array
from pipeline.foundation.errors import ArchiveError
from pipeline.foundation.machine import cores

_ZSTD_FILTER = 32015
_LEVEL = 1
_EXTRA = "pip install 'featuremaps[zstd]'"


class Codec(StrEnum):
    """How activations are compressed.

    `none`; `gzip`: every reader has it, slow to write; `zstd`: fast, and readers need hdf5plugin.
    """

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


def ready(codecs: Iterable[str]) -> None:
    """Make HDF5 able to read and write these codecs.

    Raises:
        ArchiveError: when one needs a package that is not installed.
    """
    if Codec.ZSTD in codecs:
        _zstd()


@cache
def _zstd() -> Any:
    try:
        import hdf5plugin  # noqa: F401 - registers its filters with HDF5
        import zstandard
    except ImportError:
        raise ArchiveError(f"zstd needs packages that are not installed: {_EXTRA}") from None
    return zstandard


def dataset_options(codec: str) -> dict[str, Any]:
    """Return what `create_dataset` takes for `gzip` or `zstd`."""
    if codec == Codec.GZIP:
        return {"shuffle": True, "compression": "gzip", "compression_opts": _LEVEL}
    return {"shuffle": True, "compression": _ZSTD_FILTER, "compression_opts": (_LEVEL,)}


def compress(chunk: Array, codec: str) -> bytes:
    """Return a chunk as HDF5 stores it: bytes shuffled by their place in a number, compressed."""
    numbers = np.ascontiguousarray(chunk).view(np.uint8).reshape(-1, chunk.itemsize)
    shuffled = np.ascontiguousarray(numbers.T)
    if codec == Codec.GZIP:
        return zlib.compress(shuffled.data, _LEVEL)
    frame: bytes = _zstd().ZstdCompressor(level=_LEVEL, write_checksum=True).compress(shuffled.data)
    return frame


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
            dataset[start : start + len(rows)] = rows
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
