"""Bars: a vector as one bar per channel, so that it is never taken for a map."""

from __future__ import annotations

import numpy as np

from pipeline.common.arrays import Array
from pipeline.rendering.drawing.colormaps import Scale, normalize
from pipeline.rendering.drawing.palette import INK_INDEX, NONFINITE_INDEX, PAPER_INDEX, SHADES
from pipeline.rendering.drawing.text_and_resize import INK, SOFT_INK

_AXIS = INK_INDEX[SOFT_INK] + SHADES - 3
_BAR = INK_INDEX[INK] + SHADES - 2


def bars(
    values: Array, size: tuple[int, int], limits: tuple[float, float], scale: Scale = Scale.LINEAR
) -> Array:
    """Return bars from zero to each value `(channel,)`, the first channel on the left.

    Where several share a column of pixels, their range is drawn; the limits are widened to hold
    zero.

    Returns:
        uint8 `(height, width)`, numbers of any palette's colours; columns of values that are not
        finite have theirs.
    """
    height, width = size
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    ends = normalize(np.append(values, 0.0), low, high, scale)
    start = np.arange(width) * len(values) // width
    stop = np.maximum(start + 1, np.arange(1, width + 1) * len(values) // width)
    shown = [ends[first:last] for first, last in zip(start, stop, strict=True)]
    bad = np.array([bool(np.isnan(part).any()) for part in shown])
    tops = np.array([max(np.nan_to_num(part).max(), ends[-1]) for part in shown])
    feet = np.array([min(np.nan_to_num(part, nan=1).min(), ends[-1]) for part in shown])
    rows = (height - 1 - np.arange(height))[:, None]  # counted from below
    zero = round(float(ends[-1]) * (height - 1))
    pixels = np.full((height, width), PAPER_INDEX, dtype=np.uint8)
    pixels[:, bad] = NONFINITE_INDEX
    inside = (rows <= np.rint(tops * (height - 1))) & (rows >= np.rint(feet * (height - 1)))
    pixels[inside & ~bad] = _BAR
    pixels[height - 1 - zero] = np.where(bad, NONFINITE_INDEX, _AXIS)
    return pixels
