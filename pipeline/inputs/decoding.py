"""Decoding policy: the bytes of an image file become an RGB photo, or an error that says what is
wrong with it.

Pillow only: torchvision's decoder crashes on a damaged PNG and has no limit on the size of a
picture. EXIF orientation is applied; transparency is laid over a stated colour; what would lose
data silently (16 bits per channel, several frames) is refused unless the configuration says what to
do. Embedded colour profiles are not applied, as in torchvision and timm.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from pipeline.foundation.configured import Positive, configured
from pipeline.foundation.errors import SampleError


class SixteenBit(StrEnum):
    """What to do with more than 8 bits per channel."""

    REJECT = "reject"
    SCALE = "scale"


class MultiFrame(StrEnum):
    """What to do with animations and multi-page files."""

    REJECT = "reject"
    FIRST = "first"


@configured
class Decoding:
    """How image files are decoded.

    Attributes:
        background: colour under transparent pixels: any CSS name or `#rrggbb`.
        sixteen_bit: `reject`, or `scale` 0..65535 to 0..255.
        multi_frame: `reject`, or `first` to take the first frame.
        max_pixels: larger pictures are refused before they are decoded (decompression bombs).
    """

    background: str = "white"
    sixteen_bit: SixteenBit = SixteenBit.REJECT
    multi_frame: MultiFrame = MultiFrame.REJECT
    max_pixels: Positive = 178_956_970

    def __post_init__(self) -> None:
        ImageColor.getrgb(self.background)  # ValueError: unknown color specifier


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; never blocks on a pipe or a device.

    Raises:
        SampleError: when it is missing, unreadable, or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SampleError(f"{path}: not a regular file")
            return file.read()
    except OSError as error:
        raise SampleError(f"{path}: {error.strerror or error}") from error


def decode(source: bytes | Image.Image, policy: Decoding) -> Image.Image:
    """Return the photo in mode RGB, upright, without transparency.

    Args:
        source: an encoded image file, or an already opened Pillow image.
        policy: what to accept.

    Raises:
        SampleError: when it is no image, is damaged, too large, or of a kind that the policy
            refuses.
    """
    try:
        with warnings.catch_warnings(), _pillows_limit(policy.max_pixels):
            # Our own limit comes first; Pillow only warns in between.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Of what it makes the best, as of damaged EXIF data.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            if not isinstance(source, Image.Image):
                if not source:
                    raise SampleError("the file is empty")
                with Image.open(io.BytesIO(source)) as image:
                    return _to_rgb(image, policy)
            return _to_rgb(source, policy)
    except SampleError:
        raise
    except UnidentifiedImageError:
        raise SampleError("not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise SampleError(f"{error} It is loader.decoding.max_pixels={policy.max_pixels}") from None
    except MemoryError:
        raise SampleError("not enough memory to decode it") from None
    except Exception as error:
        raise SampleError(f"damaged image: {error}") from error


@contextmanager
def _pillows_limit(pixels: int) -> Iterator[None]:
    """Let Pillow refuse what is twice as large, also within formats that nest pictures."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _to_rgb(image: Image.Image, policy: Decoding) -> Image.Image:
    width, height = image.size
    if width * height > policy.max_pixels:
        raise SampleError(
            f"{width}×{height} pixels exceed loader.decoding.max_pixels={policy.max_pixels}"
        )
    # A phone's MPO holds the photo and a preview or a second view: the first frame is the photo.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        if policy.multi_frame is MultiFrame.REJECT:
            raise SampleError(
                f"{image.format} with {getattr(image, 'n_frames', 1)} frames; "
                "set loader.decoding.multi_frame=first to take the first"
            )
        image.seek(0)
    deep = _is_deep(image)
    if deep and policy.sixteen_bit is SixteenBit.REJECT:
        raise SampleError(
            "more than 8 bits per channel; set loader.decoding.sixteen_bit=scale to reduce it to 8"
        )
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_deep(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*ImageColor.getrgb(policy.background), 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    """Tell whether the file holds more than 8 bits per channel, which Pillow reduces silently."""
    if image.mode.startswith("I") or image.mode == "F":
        return True
    for tile in getattr(image, "tile", ()) or ():
        args: Any = tile[3] if len(tile) > 3 else ()
        if any(
            isinstance(arg, str) and ";16" in arg
            for arg in ([args] if isinstance(args, str) else args or ())
        ):
            return True
    return False


def _scale_deep(image: Image.Image) -> Image.Image:
    """Scale one channel of 16-bit integers to 8 bits; nothing else so deep has a known range."""
    values = np.asarray(image).astype(np.int64) if image.mode != "F" else None
    if values is None or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise SampleError(f"mode {image.mode}: values outside 0..65535 have no known scale")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
