"""Image formats that Pillow may open, and its settings for decoding."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from PIL import Image, ImageFile, PngImagePlugin

from pipeline.common.errors import SampleError

FORMATS = frozenset(
    ("AVIF", "BMP", "DDS", "DIB", "GIF", "HEIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX",
     "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM")
)  # fmt: skip
"""Raster formats: Pillow would run Ghostscript for EPS and registered handlers for others."""

_UNREADABLE = {  # first bytes → reason and remedy
    b"%!PS": "PostScript is not supported; convert it to PNG",
    b"\xc5\xd0\xd3\xc6": "PostScript is not supported; convert it to PNG",
    b"%PDF": "PDF is not supported; convert it to PNG",
    b"\xd7\xcd\xc6\x9a": "WMF is not supported; convert it to PNG",
    b"vers": "not an image but perhaps a pointer of Git LFS; run: git lfs pull",
    b"II*\0": "Pillow cannot read a TIFF of this layout; save it as 8-bit grey or RGB",
    b"MM\0*": "Pillow cannot read a TIFF of this layout; save it as 8-bit grey or RGB",
}


@cache
def raster_formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats, in the order in which it tries them."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in Image.ID if name in FORMATS)


@cache
def image_endings() -> frozenset[str]:
    """Return the file name endings of images, in lower case.

    HEIC and AVIF are always included: without a reader, the run reports each file as an error.
    """
    raster_formats()
    readable = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
    return frozenset(readable | {".heic", ".heif", ".avif"})


def refuse_other_formats(image: Image.Image) -> None:
    """Raise if a Pillow image, loaded or not, comes from a file that is not a raster image."""
    if image.format is not None and image.format not in FORMATS:
        raise SampleError(f"{image.format} is not supported; convert it to PNG")


def why_unreadable(content: bytes) -> str:
    """Return the reason why Pillow does not identify a file, and the remedy."""
    kind = content[4:8] == b"ftyp" and content[8:32]
    if kind and any(brand in kind for brand in (b"hei", b"hev", b"mif1", b"avi")):
        return "HEIC and AVIF need a plug-in; run: pip install 'featuremaps[heif]'"
    return _UNREADABLE.get(content[:4], "not an image that Pillow can read")


_PILLOW = threading.RLock()


@contextmanager
def guarded_pillow(max_pixels: int | None = None) -> Iterator[None]:
    """Set Pillow's process-wide settings for decoding and restore them afterwards.

    Only raster formats are opened. Truncated files are rejected, and so are images of more than
    twice `max_pixels`, including nested ones.
    """
    formats = list(raster_formats())
    with _PILLOW, warnings.catch_warnings():
        # `decode` applies the exact limit; Pillow only warns up to twice that.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Pillow warns about damaged EXIF data and ignores it.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        before = Image.ID, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        text = PngImagePlugin.MAX_TEXT_CHUNK  # also of a profile
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
        Image.ID, ImageFile.LOAD_TRUNCATED_IMAGES = formats, False
        Image.MAX_IMAGE_PIXELS = max_pixels or before[1]
        try:
            yield
        finally:
            Image.ID, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before
            PngImagePlugin.MAX_TEXT_CHUNK = text
