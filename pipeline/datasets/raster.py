"""Which image files Pillow may open, and with what settings."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from PIL import Image, ImageFile

from pipeline.common.errors import SampleError

FORMATS = frozenset(
    ("AVIF", "BMP", "DDS", "DIB", "GIF", "HEIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX",
     "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM")
)  # fmt: skip
"""Raster formats. Pillow starts Ghostscript for EPS, and leaves others to handlers of anyone's."""

_UNREADABLE = {  # first bytes → what the file is, and what to do
    b"%!PS": "PostScript is not opened; convert it to PNG",
    b"\xc5\xd0\xd3\xc6": "PostScript is not opened; convert it to PNG",
    b"%PDF": "PDF is not opened; convert it to PNG",
    b"\xd7\xcd\xc6\x9a": "WMF is not opened; convert it to PNG",
    b"II*\0": "Pillow cannot read a TIFF of this layout; save it as 8-bit grey or RGB",
    b"MM\0*": "Pillow cannot read a TIFF of this layout; save it as 8-bit grey or RGB",
}


@cache
def raster_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are opened, in the order in which it tries them."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in Image.ID if name in FORMATS)


@cache
def image_endings() -> frozenset[str]:
    """Return the file name endings of images, in lower case.

    Those of HEIC and AVIF are among them even where nothing reads them, so that the run names them.
    """
    raster_formats()
    readable = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
    return frozenset(readable | {".heic", ".heif", ".avif"})


def refuse_other_formats(image: Image.Image) -> None:
    """Raise unless a Pillow image (it may not be loaded yet) is of a raster format or of none."""
    if image.format is not None and image.format not in FORMATS:
        raise SampleError(f"{image.format} is not opened; convert it to PNG")


def why_unreadable(content: bytes) -> str:
    """Return what is wrong with a file that Pillow does not identify, and what to do."""
    kind = content[4:8] == b"ftyp" and content[8:32]
    if kind and any(brand in kind for brand in (b"hei", b"hev", b"mif1", b"avi")):
        return "HEIC and AVIF need a plug-in; run: pip install 'featuremaps[heif]'"
    return _UNREADABLE.get(content[:4], "not an image that Pillow can read")


_PILLOW = threading.RLock()


@contextmanager
def guarded_pillow(max_pixels: int | None = None) -> Iterator[None]:
    """Set Pillow's process-wide settings to what decoding needs, whatever other code set.

    Only raster formats are opened, truncated files are refused, and so is a picture of more than
    twice `max_pixels`, also within formats that nest pictures.
    """
    formats = list(raster_formats())
    with _PILLOW, warnings.catch_warnings():
        # Our own limit comes first; Pillow only warns in between.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Pillow warns of damaged EXIF data, which it ignores.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        before = Image.ID, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.ID, ImageFile.LOAD_TRUNCATED_IMAGES = formats, False
        Image.MAX_IMAGE_PIXELS = max_pixels or before[1]
        try:
            yield
        finally:
            Image.ID, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before
