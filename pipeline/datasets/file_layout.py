"""Bit depth and bands of image files that Pillow reduces silently.

The mode of a Pillow image describes the decoded pixels: a 16-bit JPEG 2000 is `RGB`, and so is a
TIFF with an infrared band. The file's own layout comes from Pillow's tags and the file's headers.
"""

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImagePalette

from pipeline.common.arrays import Array

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 338, 339
_SUBFILE_TYPE, _COMPRESSION, _PLANAR_CONFIGURATION, _COLOR_MAP = 254, 259, 284, 320
_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}  # bands of RGB, CMYK, YCbCr and LAB; grey and palettes have one
_OPACITY = (1, 2, 999)  # premultiplied, straight, Corel's
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX", "CMYK")
    for order, other in ("BL", "LB", "NB")
} | {"LA;16B": "RGBA"}
"""Pillow's raw mode that reads high bytes → the one that reads the low bytes of the same file."""


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Apply the orientation of a loaded image. Damaged EXIF data are ignored; Pillow's function
    fails even on tags that it does not need.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - Pillow's parser raises anything
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def bit_depth(image: Any) -> int:
    """Return the bits per channel of an image that is not decoded yet, at least 8."""
    depth = 32 if image.mode == "F" else 16 if image.mode.startswith("I") else 8
    if image.format == "TIFF":
        return max(8, *(int(bits) for bits in image.tag_v2.get(_BITS_PER_SAMPLE, (8,))))
    if image.format == "JPEG2000":
        return max(depth, *_jpeg2000_depths(_content(image)))
    if image.format == "AVIF":
        return max((depth, *_avif_depths(_content(image))))
    if image.format == "HEIF":
        return max(depth, int(image.info.get("bit_depth", 8)))
    tiles = getattr(image, "tile", ())
    arguments = [value for tile in tiles for value in (tile[0], *_as_tuple(tile[3]))]
    if image.format == "PPM":  # the argument is the maximum value
        return max(depth, 16 if any(isinstance(n, int) and n > 255 for n in arguments) else 8)
    # "BGR;16" has 5 or 6 bits per channel.
    texts = (text for text in arguments if isinstance(text, str) and text != "BGR;16")
    deep = (";16" in text or text == "SGI16" for text in texts)
    return max(depth, 16 if any(deep) else 8)


def low_bytes(image: Image.Image) -> Array | None:
    """Return the low bytes of 16-bit colours, upright; Pillow decodes the high bytes only.

    None for other images, and for premultiplied opacity and SGI, whose scaled values may then be
    one level off, as in TIFF's separate planes.
    """
    tiles = [(tile, *_as_tuple(tile[3])) for tile in getattr(image, "tile", ())]
    if not tiles or tiles[0][1] not in _LOW_BYTES:
        return None
    with Image.open(io.BytesIO(_content(image)), formats=[str(image.format)]) as copy:
        copy.tile = [tile._replace(args=(_LOW_BYTES[mode], *rest)) for tile, mode, *rest in tiles]
        copy.load()
        low = np.asarray(upright(copy))
    return low[..., [1, 1, 1, 3]] if tiles[0][1] == "LA;16B" else low


def scale_transparent_grey(image: Image.Image) -> None:
    """Scale the transparent level of PNG files of 2 or 4 bits; Pillow scales their pixels only."""
    modes = [_as_tuple(tile[3])[0] for tile in getattr(image, "tile", ())[:1]]
    if "transparency" in image.info and modes in (["L;2"], ["L;4"]):
        image.info["transparency"] *= 85 if modes == ["L;2"] else 17


def scale_palette(image: Any) -> None:
    """Read a TIFF's palette as 8-bit values if all are below 256, as libtiff does; they should have
    16 bits, of which Pillow takes the upper 8.
    """
    colors = image.tag_v2.get(_COLOR_MAP, ()) if image.format == "TIFF" else ()
    if max(colors, default=256) < 256 and image.palette:
        image.palette = ImagePalette.raw("RGB;L", bytes(colors))


def is_thumbnail(image: Any) -> bool:
    """Return whether a TIFF's first image is a reduced one; raw files of cameras have the photo
    behind it, where Pillow does not look.
    """
    return bool(image.format == "TIFF" and image.tag_v2.get(_SUBFILE_TYPE) in (1, 3, 5, 7))


def is_signed(image: Any) -> bool:
    """Return whether a TIFF stores signed integers."""
    return image.format == "TIFF" and 2 in image.tag_v2.get(_SAMPLE_FORMAT, ())


def has_misread_planes(image: Any, depth: int) -> bool:
    """Return whether a TIFF stores its bands one by one, in a way that Pillow misreads: it takes
    bytes of uncompressed 16-bit values for pixels, and does not read opacity beside grey.
    """
    if image.format != "TIFF" or len(image.getbands()) == 1:
        return False
    tags = image.tag_v2
    raw = tags.get(_COMPRESSION, 1) == 1
    return tags.get(_PLANAR_CONFIGURATION) == 2 and (image.mode == "LA" or (depth > 8 and raw))


def white_is_zero(image: Any) -> bool:
    """Return whether a TIFF stores white as 0; Pillow inverts only up to 8 bits."""
    return bool(image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC, 1) == 0)


def extra_bands(image: Any) -> int:
    """Return the number of bands that are neither colour nor declared as opacity."""
    if image.format == "PSD":
        header = _content(image, 26)
        return int(struct.unpack(">H", header[12:14])[0]) - len(image.getbands()) if header else 0
    if image.format != "TIFF":
        return int(image.mode == "RGBX")
    tags = image.tag_v2
    colours = _COLOURS.get(tags.get(_PHOTOMETRIC, 1), 1)
    return max(0, int(tags.get(_SAMPLES, 1)) - colours - has_opacity(image))


def has_opacity(image: Any) -> bool:
    """Return whether a band is declared as opacity."""
    if image.format == "TIFF":
        return image.tag_v2.get(_EXTRA_SAMPLES, (0,))[:1] in [(kind,) for kind in _OPACITY]
    return bool(image.mode != "RGBX" and image.has_transparency_data)


def _as_tuple(arguments: Any) -> tuple[Any, ...]:
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _content(image: Any, size: int = -1) -> bytes:
    """Return the first bytes of the image's file; empty if Pillow has closed it."""
    file = getattr(image, "fp", None)
    if file is None or file.closed:
        return b""
    position = file.tell()
    file.seek(0)
    content: bytes = file.read(size)
    file.seek(position)
    return content


def _jpeg2000_depths(content: bytes) -> list[int]:
    """Return the bits of every component (ISO 15444-1, A.5.1)."""
    start = content.find(b"\xff\x4f\xff\x51") + 2
    if start < 2 or len(content) < start + 40:
        return [8]
    count = int.from_bytes(content[start + 38 : start + 40])
    return [(bits & 0x7F) + 1 for bits in content[start + 40 : start + 40 + 3 * count : 3]] or [8]


def _avif_depths(content: bytes) -> Iterator[int]:
    """Yield the bits of every coded picture (AV1-ISOBMFF, 2.3.3: in the boxes `av1C`)."""
    position = 0
    while position + 8 <= len(content):
        size, name = struct.unpack(">I4s", content[position : position + 8])
        if size == 1:
            size = int.from_bytes(content[position + 8 : position + 16])
        end = position + size if size >= 8 else len(content)
        box = content[position:end] if name in (b"meta", b"moov") else b""
        start = box.find(b"av1C")
        while start >= 0:
            flags = box[start + 6] if start + 6 < len(box) else 0
            yield 8 + 2 * bool(flags & 0x40) + 2 * (flags & 0x60 == 0x60)
            start = box.find(b"av1C", start + 4)
        position = end
