"""Codecs: lossless compression of activations on all cores, outside HDF5's lock.

HDF5's own filters can read the output of `compress`. A compressed chunk carries a checksum
(Adler-32 in a zlib stream, XXH64 in a zstd frame), so every reader detects damage.

Sources: HDF5 specification, IV.A.2.l (filter pipeline); RFC 1950 (zlib); RFC 8878 (zstd); filter
32015 of The HDF Group's registry.
"""

import math
import zlib
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveError

_ZSTD_FILTER = 32015
_LEVEL = 1
_EXTRA = "pip install 'featuremaps[zstd]'"


Codec = Literal["none", "gzip", "zstd"]
"""Compression of activations: gzip is supported by every reader, but slow to write; zstd is fast,
readers need hdf5plugin."""


def ready(codecs: Iterable[str]) -> None:
    """Raise ArchiveError if a package of these codecs is not installed."""
    if "zstd" in codecs:
        _zstd()


@cache
def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ArchiveError(f"zstd needs packages that are not installed; run: {_EXTRA}") from None
    return zstandard


def dataset_options(codec: str) -> dict[str, Any]:
    """Return the arguments of h5py's `create_dataset` for `gzip` or `zstd`."""
    if codec == "gzip":
        return {"shuffle": True, "compression": "gzip", "compression_opts": _LEVEL}
    try:
        import hdf5plugin  # noqa: F401 - registers its filters with HDF5
    except ImportError:
        raise ArchiveError(f"zstd needs packages that are not installed; run: {_EXTRA}") from None
    return {"shuffle": True, "compression": _ZSTD_FILTER, "compression_opts": (_LEVEL,)}


def compress(chunk: Array, codec: str) -> bytes:
    """Return a chunk as HDF5 stores it: byte-shuffled, then compressed."""
    numbers = np.ascontiguousarray(chunk).view(np.uint8).reshape(-1, chunk.itemsize)
    shuffled = np.ascontiguousarray(numbers.T)
    if codec == "gzip":
        return zlib.compress(shuffled.data, _LEVEL)
    frame: bytes = _zstd().ZstdCompressor(level=_LEVEL, write_checksum=True).compress(shuffled.data)
    return frame


def decompress(content: Array, codec: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return the values of a chunk.

    Args:
        content: bytes of the chunk in the file, uint8 `(byte,)`.
        codec: `gzip` or `zstd`.
        shape: of the values.
        dtype: of the values.

    Raises:
        ValueError: when the bytes are damaged or do not decompress to this size.
    """
    size = math.prod(shape) * dtype.itemsize
    if codec == "gzip":
        stream = zlib.decompressobj()
        try:
            shuffled = stream.decompress(content.data, size)
            excess = stream.decompress(stream.unconsumed_tail, 1)
        except zlib.error as error:
            raise ValueError(f"damaged chunk: {error}") from error
        complete = stream.eof and not excess
    elif codec == "zstd":
        shuffled, complete = _unzstd(content, size), True
    else:
        raise ValueError(f"unknown codec {codec!r}")
    if not complete or len(shuffled) != size:
        raise ValueError("unexpected chunk size")
    planes = np.frombuffer(shuffled, np.uint8).reshape(dtype.itemsize, -1)
    values = np.empty(planes.shape[::-1], np.uint8)
    for i, plane in enumerate(planes):  # three times as fast as a transposed copy
        values[:, i] = plane
    return values.view(dtype).reshape(shape)


def _unzstd(content: Array, size: int) -> bytes:
    zstandard = _zstd()
    try:
        if zstandard.get_frame_parameters(content).content_size != size:
            raise ValueError("unexpected chunk size")
        values: bytes = zstandard.ZstdDecompressor().decompress(content, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged chunk: {error}") from error
    return values
