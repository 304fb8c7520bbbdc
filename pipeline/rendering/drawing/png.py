"""PNG files, written directly with zlib.

Pillow tries five filters on every row of an RGB picture. Maps are enlarged by repeating rows, which
the filter `up` turns into zeros: the same size in less than half the time (measured: 12.7 instead
of 26.9 ms for an overview of 1192×671, 466 instead of 471 kB).

Format: PNG specification, third edition, W3C 2025, sections 5 and 9.
"""

import struct
import zlib

import numpy as np

from pipeline.common.arrays import Array

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TRUECOLOUR, _INDEXED = 2, 3
_NO_FILTER, _UP = 0, 2


def write_png(pixels: Array, palette: Array | None = None, level: int = 1) -> bytes:
    """Return an encoded PNG file of uint8 pixels `(height, width, rgb)`, or of indices `(height,
    width)` into a palette `(color, rgb)` of at most 256 colours.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    if palette is None:
        filtered[:, 0] = _UP
        filtered[0, 1:] = rows[0]
        np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    else:
        filtered[:, 0] = _NO_FILTER
        filtered[:, 1:] = rows
    kind = _TRUECOLOUR if palette is None else _INDEXED
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    colors = b"" if palette is None else _chunk(b"PLTE", np.ascontiguousarray(palette).tobytes())
    data = _chunk(b"IDAT", zlib.compress(filtered.data, level))
    return _SIGNATURE + _chunk(b"IHDR", head) + colors + data + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
