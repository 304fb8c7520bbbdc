"""Inputs as JPEG: the files of all samples, concatenated in one dataset of bytes."""

import io

import numpy as np
from PIL import Image, JpegImagePlugin

from pipeline.archive.format.file_bytes import Extent
from pipeline.archive.format.footer import Table
from pipeline.archive.format.object_bytes import ByteSource
from pipeline.archive.format.rows import Checksums, Part, RowReader
from pipeline.common.arrays import Array

QUALITY = 90
"""JPEG quality; chroma is not subsampled (4:4:4)."""
COMPRESSION = 5
"""Assumed compression ratio; measured on photos: 7.6 on average, 5.5 at least."""
LONGEST_SIDE = 65_500
"""Limit of libjpeg in pixels."""


def misfit(shape: tuple[int, int, int]) -> str:
    """Return why pixels `(channel, height, width)` do not fit into JPEG; empty if they do."""
    side = max(shape[1:])
    return (
        f"JPEG is limited to {LONGEST_SIDE} pixels a side, got {side}"
        if side > LONGEST_SIDE
        else ""
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
        ValueError: when the file is damaged or has another shape.
    """
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
        if (len(image.getbands()), image.height, image.width) != tuple(shape):
            raise ValueError(
                f"unexpected JPEG size or mode: {image.width}×{image.height} {image.mode}"
            )
        return np.asarray(image).reshape(*shape[1:], shape[0]).transpose(2, 0, 1)
    except (SyntaxError, OSError) as error:
        raise ValueError(f"damaged JPEG file: {error}") from error


class JpegRows(RowReader):
    """The pixels of rows stored as JPEG files.

    Args:
        source, table: the file, and the dataset of bytes in it.
        checksums: of each JPEG file.
        offsets: `(sample + 1,)`, start of each file in the dataset; ValueError if not in order.
        shape: channel, height, width of the pixels.
    """

    def __init__(
        self, source: ByteSource, table: Table, checksums: Checksums, offsets: Array,
        shape: tuple[int, ...],
    ) -> None:  # fmt: skip
        if offsets[0] != 0 or offsets[-1] != table.shape[0] or (np.diff(offsets) < 0).any():
            raise ValueError("the offsets of the JPEG files are not in order")
        self._source, self._checksums, self._shape = source, checksums, shape
        self._offsets = offsets + table.extents[0][0]

    def extents(self, rows: Array) -> list[Extent]:
        starts = self._offsets[rows]
        return list(zip(starts.tolist(), (self._offsets[rows + 1] - starts).tolist(), strict=True))

    def content(self, row: int) -> bytes:
        """Return a row's JPEG file."""
        start, stop = self._offsets[row : row + 2].tolist()
        content = self._source.read(start, stop - start)
        self._checksums.compare(range(row, row + 1), content[None])
        return content.tobytes()

    def read(self, first: int, out: Array, part: Part = ()) -> None:
        """See `RowReader.read`; `part` indexes channel, height and width."""
        for row, pixels in enumerate(out, first):
            pixels[...] = decode(self.content(row), self._shape)[part]

    def gather(self, rows: Array, out: Array, places: Array) -> None:
        for row, index in zip(rows.tolist(), places.tolist(), strict=True):
            self.read(row, out[index : index + 1])
