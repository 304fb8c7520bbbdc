"""Resize and centre crop; of a very long image, only the cropped pixels are computed."""

from collections.abc import Sequence

from PIL import Image

from pipeline.common.errors import SampleError

_MAX_RESIZED = 2**25
"""Pixels (134 MB) of a resized image; a height of one pixel could need a million columns."""


def resize_and_crop(
    image: Image.Image, resize: Sequence[int] | None, crop: Sequence[int] | None, interpolation: str
) -> Image.Image:
    """Resize and crop as torchvision's `resize` and `center_crop` do.

    If the resized image would exceed 2^25 pixels, only the crop is resized. It equals the crop of
    the whole up to rounding: unless the scale is a binary fraction, few values differ by one.
    """
    mode = Image.Resampling[interpolation.upper()]
    if resize is not None:
        width, height = _resized_size(image.size, resize)
        if not grows_too_large(image.size, resize):
            if image.size != (width, height):
                image = image.resize((width, height), mode)
        elif crop is None:
            raise SampleError(
                f"{image.width}×{image.height} pixels would become {width}×{height}; "
                "set model.transform.crop"
            )
        else:
            x0, x1, left, right = _window(image.width, width, crop[-1])
            y0, y1, top, bottom = _window(image.height, height, crop[0])
            size = (min(width, crop[-1]), min(height, crop[0]))
            image = image.crop((x0, y0, x1, y1)).resize(size, mode, box=(left, top, right, bottom))
    return image if crop is None else _center_crop(image, crop[-1], crop[0])


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the centre of an image, black outside it."""
    left, top = (
        round((side - size) / 2) if side >= size else (side - size + 1) // 2
        for side, size in zip(image.size, (width, height), strict=True)
    )
    return image.crop((left, top, left + width, top + height))


def grows_too_large(size: tuple[int, int], resize: Sequence[int] | None) -> bool:
    """Return whether resizing an image of (width, height) `size` would exceed 2^25 pixels."""
    if resize is None or len(resize) == 2:
        return False
    width, height = _resized_size(size, resize)
    return width * height > _MAX_RESIZED


def _resized_size(size: tuple[int, int], resize: Sequence[int]) -> tuple[int, int]:
    if len(resize) == 2:
        return resize[1], resize[0]
    short, long = sorted(size)
    resized_long = int(resize[0] * long / short)
    return (resized_long, resize[0]) if size[0] > size[1] else (resize[0], resized_long)


def _window(side: int, resized: int, crop: int) -> tuple[int, int, float, float]:
    """Return the pixel range that the resized crop depends on, and the crop's bounds within it.

    A filter reaches three pixels of the coarser grid beyond the crop.
    """
    scale, start = side / resized, max(0, round((resized - crop) / 2))
    begin, end = start * scale, min(resized, start + crop) * scale
    reach = 3 * max(1.0, scale) + 1
    first, last = max(0, int(begin - reach)), min(side, int(end + reach) + 1)
    return first, last, begin - first, min(end - first, last - first)
