"""Palettes: the 256 colours of a picture that contains only maps, stored as one byte per pixel.

A palette holds a colormap in `LEVELS` steps, the paper, the colour of non-finite values and the
shades of both inks on paper.
"""

from functools import cache

import matplotlib as mpl
import numpy as np

from pipeline.common.arrays import Array
from pipeline.rendering.drawing.colormaps import NONFINITE, table
from pipeline.rendering.drawing.text_and_resize import INK, PAPER, SOFT_INK

LEVELS = 240
PAPER_INDEX = 240
NONFINITE_INDEX = 241
SHADES = 7
INK_INDEX = {INK: 242, SOFT_INK: 242 + SHADES}
"""Index of the lightest shade of each ink; the darkest is the ink itself."""


@cache
def palette(colormap: str) -> Array:
    """Return the colours, uint8 `(256, rgb)`, with the colormap resampled by matplotlib."""
    table(colormap)
    colors = np.empty((256, 3), np.uint8)
    steps = mpl.colormaps[colormap].resampled(LEVELS)
    colors[:LEVELS] = steps(np.arange(LEVELS), bytes=True)[:, :3]
    colors[PAPER_INDEX], colors[NONFINITE_INDEX] = PAPER, NONFINITE
    for ink, first in INK_INDEX.items():
        share = np.arange(1, SHADES + 1)[:, None] / SHADES
        colors[first : first + SHADES] = np.rint(np.array(PAPER) * (1 - share) + share * ink)
    return colors


def indices(unit: Array) -> Array:
    """Return palette indices: floor(240·x) for values in 0..1, `NONFINITE_INDEX` for NaN."""
    finite = np.isfinite(unit)
    if finite.all():
        return np.minimum(unit * np.float32(LEVELS), LEVELS - 1).astype(np.uint8)
    steps = np.minimum(np.where(finite, unit, 0) * np.float32(LEVELS), LEVELS - 1)
    return np.where(finite, steps.astype(np.uint8), np.uint8(NONFINITE_INDEX))
