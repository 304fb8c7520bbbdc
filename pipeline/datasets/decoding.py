"""Decoding policy: decode the bytes of an image file to RGB, or raise an error with the reason.

Only Pillow is used: torchvision's decoder crashes on a damaged PNG and has no size limit. EXIF
orientation is applied and transparency is composited over a configured colour. Silent data loss (16
bits per channel, extra bands, several frames) is an error unless the configuration allows it. As in
torchvision and timm, embedded colour profiles are not applied.
"""

import io
import os
import stat
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError

from pipeline.common.arrays import Array
from pipeline.common.configured import Positive, configured
from pipeline.common.errors import SampleError, reraised
from pipeline.datasets import file_layout, raster

_SAVE = "save it with 8 or 16 unsigned bits per channel"
_EMPTY_OPACITY = ("BMP", "DIB", "ICO", "TGA")
"""Formats whose writers leave an unused fourth byte 0; as in browsers, that is not transparency."""


@configured
class Decoding:
    """How image files are decoded.

    Attributes:
        background: colour under transparent pixels: any CSS name or `#rrggbb`.
        sixteen_bit: more than 8 bits per channel: `reject`, or `scale` the file's range (0..65535
            for 16 bits) to 0..255 (colours in SGI files, in separate planes or with premultiplied
            opacity may be one level off).
        extra_bands: bands that are neither colour nor declared as opacity, as in a TIFF with
            infrared or an array `(height, width, 4)`: `reject`, `drop`, or `alpha` to use the
            fourth band as opacity.
        multi_frame: animations and multi-page files: `reject`, or `first` to use the first frame.
        max_pixels: larger images are rejected before decoding (decompression bombs).
    """

    background: str = "white"
    sixteen_bit: Literal["reject", "scale"] = "reject"
    extra_bands: Literal["reject", "drop", "alpha"] = "reject"
    multi_frame: Literal["reject", "first"] = "reject"
    max_pixels: Positive = 178_956_970

    def __post_init__(self) -> None:
        if len(ImageColor.getrgb(self.background)) != 3:  # ValueError: unknown color specifier
            raise ValueError(
                f"background: {self.background!r} has an opacity; use an opaque colour"
            )


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; never blocks on a pipe or a device."""
    with reraised(str(path), SampleError, OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SampleError(f"{path}: not a regular file")
            return file.read()


def decode(
    source: bytes | Image.Image, policy: Decoding, *, smallest: int | None = None
) -> Image.Image:
    """Return the image in mode RGB, upright, without transparency.

    Args:
        source: content of a file, or an image.
        policy: what is accepted.
        smallest: decode a JPEG file at 1/2, 1/4 or 1/8 of its size if both sides remain at least
            this long; None decodes all pixels.

    Raises:
        SampleError: when the source is not an image, damaged, too large or rejected by the policy.
    """
    try:
        with raster.guarded_pillow(policy.max_pixels):
            if isinstance(source, Image.Image):
                raster.refuse_other_formats(source)
                return _to_rgb(source, policy, smallest)
            if not source:
                raise SampleError("the file is empty")
            with Image.open(io.BytesIO(source), formats=raster.raster_formats()) as image:
                return _to_rgb(image, policy, smallest)
    except SampleError:
        raise
    except UnidentifiedImageError:
        content = source if isinstance(source, bytes) else b""
        raise SampleError(raster.why_unreadable(content)) from None
    except Image.DecompressionBombError as error:
        raise SampleError(
            f"{error} The limit is loader.decoding.max_pixels={policy.max_pixels}"
        ) from None
    except MemoryError:
        raise SampleError("not enough memory to decode it") from None
    except Exception as error:
        raise SampleError(f"damaged image: {error}") from error


def _to_rgb(image: Image.Image, policy: Decoding, smallest: int | None) -> Image.Image:
    width, height = image.size
    if width * height > policy.max_pixels:
        raise SampleError(
            f"{width}×{height} pixels exceed loader.decoding.max_pixels={policy.max_pixels}"
        )
    if not width * height:
        raise SampleError(f"an image of {width}×{height} pixels is empty")
    if file_layout.is_thumbnail(image):
        raise SampleError(
            "Pillow reads only the thumbnail of this file (a camera's raw file?); convert it to PNG"
        )
    frames = getattr(image, "n_frames", 1)
    # The first frame of MPO (photo and preview) and PSD (image and layers) is the photo.
    if frames > 1 and image.format not in ("MPO", "PSD"):
        if policy.multi_frame == "reject":
            raise SampleError(
                f"{image.format} with {frames} frames; "
                "set loader.decoding.multi_frame=first to use the first"
            )
        image.seek(0)
    depth, inverted = file_layout.bit_depth(image), file_layout.white_is_zero(image)
    undeclared = _undeclared(image, policy)
    largest = 2**depth - 1 if image.format == "TIFF" and depth <= 16 else 65535
    _check_depth(image, depth, policy)
    if smallest is not None:
        image.draft(None, (smallest, smallest))
    low = file_layout.low_bytes(image)
    file_layout.scale_transparent_grey(image)
    file_layout.scale_palette(image)
    image.load()
    image = file_layout.upright(image)
    if image.mode.startswith("I") or low is not None:
        image = _scaled(image, low, largest, inverted=inverted)
    if undeclared and policy.extra_bands == "drop":
        image = Image.merge("RGB", image.split()[:3])
    elif image.mode == "RGBX":
        image = Image.frombytes("RGBA", image.size, image.tobytes())
    elif image.mode == "LAB":
        raise SampleError("L*a*b* colours are not supported; save the image as RGB")
    if image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    if image.format in _EMPTY_OPACITY and "A" in image.mode and image.getextrema()[-1] == (0, 0):
        return image.convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*ImageColor.getrgb(policy.background), 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def _check_depth(image: Image.Image, depth: int, policy: Decoding) -> None:
    """Raise unless the policy and Pillow can reduce the image to 8 bits per channel."""
    if file_layout.has_misread_planes(image, depth):
        raise SampleError(
            "Pillow decodes these separate planes to wrong values; save the image with "
            "interleaved channels"
        )
    if depth == 8 and file_layout.is_signed(image):
        raise SampleError(f"signed integers have no known scale; {_SAVE}")
    if depth == 8:
        return
    if image.mode == "F":
        raise SampleError(f"floating-point values have no known scale; {_SAVE}")
    if image.format == "JPEG2000" and not image.mode.startswith("I"):
        raise SampleError(
            f"Pillow decodes {depth}-bit colour in JPEG 2000 to wrong values; "
            "save it as 8-bit JPEG 2000 or 16-bit PNG"
        )
    if image.mode == "I":
        low, high = map(int, image.getextrema())  # type: ignore[arg-type]
        if low < 0 or high > 65535 or (0 < high < 256 and image.format != "PPM"):
            raise SampleError(f"values of {low} to {high} have no known scale; {_SAVE}")
    if policy.sixteen_bit == "reject":
        raise SampleError(
            "more than 8 bits per channel; set loader.decoding.sixteen_bit=scale to convert to 8"
        )


def _undeclared(image: Image.Image, policy: Decoding) -> bool:
    """Return whether the image's fourth band has no declared meaning."""
    extra = file_layout.extra_bands(image)
    if not extra:
        return False
    if policy.extra_bands == "reject":
        raise SampleError(
            f"bands beyond colour and opacity: {extra}; set loader.decoding.extra_bands=drop to "
            "use the colours alone, or alpha if the fourth band is opacity"
        )
    undeclared = image.mode in ("RGBX", "RGBA") and not file_layout.has_opacity(image)
    if policy.extra_bands == "alpha" and not undeclared:
        raise SampleError(
            "Pillow does not return the extra band; set loader.decoding.extra_bands=drop"
        )
    return undeclared


def _scaled(image: Image.Image, low: Array | None, largest: int, *, inverted: bool) -> Image.Image:
    """Scale channels of 0..largest to 8 bits; `low` holds the bytes that Pillow drops."""
    values = np.asarray(image).astype(np.int64)
    if low is not None:
        values = values * 256 + low
    if inverted:
        values = largest - values
    scaled = ((values * 255 + largest // 2) // largest).astype(np.uint8)
    mode = "L" if low is None else image.mode
    result = Image.frombytes(mode, image.size, scaled.tobytes())
    transparent = image.info.get("transparency")
    if isinstance(transparent, (int, tuple)):
        opaque = (values.reshape(image.height, image.width, -1) != transparent).any(-1)
        result.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return result
