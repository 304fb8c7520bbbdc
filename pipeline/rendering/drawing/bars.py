"""Bars: a vector as one bar per channel, so that it is not mistaken for a map."""

import numpy as np

from pipeline.common.arrays import Array
from pipeline.rendering.drawing.colormaps import (
    INK_INDEX,
    NONFINITE_INDEX,
    PAPER_INDEX,
    SHADES,
    Scale,
    normalize,
)
from pipeline.rendering.drawing.text_and_resize import INK, SOFT_INK

_AXIS = INK_INDEX[SOFT_INK] + SHADES - 3
_BAR = INK_INDEX[INK] + SHADES - 2


def bars(
    values: Array, size: tuple[int, int], limits: tuple[float, float], scale: Scale = "linear"
) -> Array:
    """Return bars from zero to each value `(channel,)`, with the first channel on the left.

    A column of pixels shared by several channels shows their range. The limits are extended to
    include zero.

    Returns:
        uint8 `(height, width)` indices valid in every palette; columns with a non-finite value are
        `NONFINITE_INDEX`.
    """
    height, width = size
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    unit = normalize(np.append(values, 0.0), low, high, scale)
    ends, origin = unit[:-1], unit[-1]
    first = np.arange(width) * len(values) // width
    bad = np.logical_or.reduceat(np.isnan(ends), first)
    tops = np.maximum(np.fmax.reduceat(ends, first), origin)
    feet = np.minimum(np.fmin.reduceat(ends, first), origin)
    rows = (height - 1 - np.arange(height))[:, None]  # counted from below
    zero = round(float(origin) * (height - 1))
    pixels = np.full((height, width), PAPER_INDEX, dtype=np.uint8)
    pixels[:, bad] = NONFINITE_INDEX
    inside = (rows <= np.rint(tops * (height - 1))) & (rows >= np.rint(feet * (height - 1)))
    pixels[inside & ~bad] = _BAR
    pixels[height - 1 - zero] = np.where(bad, NONFINITE_INDEX, _AXIS)
    return pixels
