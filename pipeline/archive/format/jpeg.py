"""Inputs as JPEG: one file per sample, one after another in a dataset of bytes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, JpegImagePlugin

from pipeline.archive.format.file_bytes import FileBytes
from pipeline.archive.format.footer import Table
from pipeline.archive.format.rows import Checksums, Part
from pipeline.common.arrays import Array

QUALITY = 90
"""Of the JPEG files; their colours are stored at full resolution (4:4:4)."""
COMPRESSION = 5
"""Pixels' bytes by the files', for estimates; measured on photos: 7.6 on average, 5.5 at least."""
LONGEST_SIDE = 65_500
"""What libjpeg writes."""


def misfit(shape: tuple[int, int, int]) -> str:
    """Return why pixels `(channel, height, width)` cannot be stored as JPEG; empty if they can."""
    side = max(shape[1:])
    return (
        f"JPEG has at most {LONGEST_SIDE} pixels a side, not {side}" if side > LONGEST_SIDE else ""
    )


def encode(pixels: Array) -> bytes:
    """Return uint8 pixels `(channel, height, width)` as a JPEG file."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def decode(content: bytes, shape: tuple[int, ...]) -> Array:
    """Return the uint8 pixels `(channel, height, width)` of a JPEG file.

    Raises:
        ValueError: when it is damaged, or has another shape.
    """
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
        if (len(image.getbands()), image.height, image.width) != tuple(shape):
            raise ValueError(f"a JPEG file of {image.width}×{image.height} {image.mode}")
        return np.asarray(image).reshape(*shape[1:], shape[0]).transpose(2, 0, 1)
    except (SyntaxError, OSError) as error:
        raise ValueError(f"a damaged JPEG file, {error}") from error


class JpegRows:
    """Rows that are stored as JPEG files: a `RowReader` of their pixels."""

    def __init__(
        self, source: FileBytes, table: Table, checksums: Checksums, offsets: Array,
        shape: tuple[int, ...],
    ) -> None:  # fmt: skip
        """Take the place of the files.

        Args:
            source: the archive's file.
            table: of the JPEG files' bytes.
            checksums: of each JPEG file.
            offsets: `(sample + 1,)`, where each begins among the bytes.
            shape: channel, height, width of the pixels.

        Raises:
            ValueError: when the offsets are not those of files one after another.
        """
        if offsets[0] != 0 or offsets[-1] != table.shape[0] or (np.diff(offsets) < 0).any():
            raise ValueError("offsets of JPEG files that are not in order")
        self._source, self._checksums, self._shape = source, checksums, shape
        self._places = offsets + table.extents[0][0]

    def content(self, row: int) -> bytes:
        """Return a row's JPEG file.

        Raises:
            ArchiveError: when its checksum fails.
            OSError: when the file cannot be read.
        """
        start, stop = self._places[row : row + 2].tolist()
        content = self._source.read(start, stop - start)
        self._checksums.compare(row, content[None])
        return content.tobytes()

    def read(self, first: int, out: Array, part: Part = ()) -> None:
        """See `RowReader.read`; a `part` is one of channels, height and width.

        Raises:
            ValueError: when a file is damaged, or its pixels have another shape.
        """
        for row, pixels in enumerate(out, first):
            pixels[...] = decode(self.content(row), self._shape)[part]

    def gather(self, rows: Array, out: Array, places: Array) -> None:
        """See `RowReader.gather`."""
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            self.read(row, out[place : place + 1])
