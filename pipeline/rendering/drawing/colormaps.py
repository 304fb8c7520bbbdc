"""Colormaps: scalar values to RGB with explicit normalisation and matplotlib's colour tables.

Non-finite values are painted in `NONFINITE`, a colour that no table uses; a constant map is painted
in the table's lowest colour. A single NaN never blackens a picture.

A palette holds the 256 colours of a picture that contains only maps, stored as one byte per pixel:
a colormap in `LEVELS` steps, the paper, the colour of non-finite values, and shades of both inks.
"""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Literal

import matplotlib as mpl
import numpy as np
from pydantic import AfterValidator

from pipeline.common.arrays import Array
from pipeline.common.errors import known
from pipeline.rendering.drawing.text_and_resize import INK, PAPER, SOFT_INK

NONFINITE = (255, 0, 200)
"""Colour of NaN and infinite values."""

LEVELS = 240
PAPER_INDEX = 240
NONFINITE_INDEX = 241
SHADES = 7
INK_INDEX = {INK: 242, SOFT_INK: 242 + SHADES}
"""Index of the lightest shade of each ink; the darkest is the ink itself."""

_LOG_DECADES = 3
_LINEAR_SHARE = 0.01


Scale = Literal["linear", "log", "symlog"]
"""How values between the limits map to 0..1: proportional; logarithmic over the three decades below
the upper limit, smaller values get the lowest colour; or linear within 1 % of the largest magnitude
around zero, logarithmic beyond."""

AUTO = "auto"
"""Choose by layer: `SIGNED` if it has negative values, else `UNSIGNED`."""
SIGNED, UNSIGNED = "RdBu_r", "viridis"


@cache
def table(name: str) -> Array:
    """Return a matplotlib colour table, uint8 `(color, rgb)`; usually 256 rows."""
    if name == AUTO:
        name = UNSIGNED
    known(name, [AUTO, *mpl.colormaps], "matplotlib has no")
    colormap = mpl.colormaps[name]
    colors: Array = colormap(np.arange(colormap.N), bytes=True)[:, :3]
    return colors


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= pair[0] < pair[1] <= 100:
        raise ValueError(f"takes two rising numbers within 0..100, got {list(pair)}")
    return pair


def _checked_name(name: str) -> str:
    table(name)
    return name


Percentiles = Annotated[tuple[float, float], AfterValidator(_rising)]
Colormap = Annotated[str, AfterValidator(_checked_name)]
"""Name of a matplotlib colormap, or `auto`."""


def not_finite(values: Array) -> str:
    """Return a text suffix with the number of non-finite values; empty if all are finite."""
    bad = int(values.size - np.isfinite(values).sum())
    return f" · {bad} not finite" if bad else ""


def limits(values: Array, percentile: Sequence[float] = (0.0, 100.0)) -> tuple[float, float]:
    """Return the range to show: percentiles (0..100) of the finite values, (0, 0) without any."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 0.0
    if tuple(percentile) == (0.0, 100.0):
        return float(finite.min()), float(finite.max())
    low, high = np.percentile(finite.astype(np.float64), percentile)
    return float(low), float(high)


def resolved(
    colormap: str, span: tuple[float, float], *, signed: bool
) -> tuple[str, tuple[float, float]]:
    """Return colormap and range with `auto` resolved; other colormaps are unchanged."""
    if colormap != AUTO:
        return colormap, span
    return (SIGNED, symmetric(span)) if signed else (UNSIGNED, span)


def symmetric(limits: tuple[float, float]) -> tuple[float, float]:
    """Return limits of equal magnitude around zero that include the given ones, -1 and 1 if these
    are 0.
    """
    largest = max(abs(limits[0]), abs(limits[1])) or 1.0
    return -largest, largest


def normalize(values: Array, low: float, high: float, scale: Scale = "linear") -> Array:
    """Return `values` mapped to 0..1 (clipped), with NaN for non-finite values.

    Args:
        values: floating point, any shape.
        low, high: finite limits; if they are equal, the result is 0.
        scale: see `Scale`.

    Returns:
        float32 of the same shape.
    """
    values, low, high = np.asarray(values), float(low), float(high)
    finite = np.isfinite(values)
    # Scaled to about 1, so that differences neither overflow nor vanish.
    factor = 2.0 ** -int(np.clip(np.frexp(max(abs(low), abs(high)))[1], -100, 130))
    with np.errstate(over="ignore"):  # beyond the limits, so clipped
        values, low, high = (values * factor).astype(np.float32), low * factor, high * factor
    span = high - low
    if not span > 0 or (scale == "log" and high <= 0):
        unit = np.zeros_like(values)
    elif scale == "linear":
        unit = (values - np.float32(low)) / np.float32(span)
    elif scale == "log":
        floor = max(low, high * 10.0**-_LOG_DECADES)
        ratio = np.log(max(high / floor, 1 + 1e-6))
        unit = (np.log(np.maximum(np.where(finite, values, floor), floor)) - np.log(floor)) / ratio
    else:
        threshold = max(abs(low), abs(high)) * _LINEAR_SHARE
        ends = _symlog(np.array([low, high]), threshold)
        unit = (_symlog(values.astype(np.float64), threshold) - ends[0]) / (ends[1] - ends[0])
    unit = np.clip(unit, 0, 1).astype(np.float32)
    return unit if finite.all() else np.where(finite, unit, np.float32(np.nan))


def _symlog(values: Array, threshold: float) -> Array:
    """Return sign(x)·log1p(|x| / threshold), linear near zero and logarithmic far from it."""
    logarithm: Array = np.sign(values) * np.log1p(np.abs(values) / threshold)
    return logarithm


def colorize(unit: Array, colormap: str) -> Array:
    """Return the colours of values in 0..1 as matplotlib maps them: table row floor(256·x).

    Args:
        unit: floating point, any shape; NaN gives `NONFINITE`.
        colormap: any matplotlib name.

    Returns:
        uint8, the shape of `unit` followed by `rgb`.
    """
    colors = table(colormap)
    bad = np.isnan(unit)
    rows = np.where(bad, 0, unit) * len(colors)
    picture: Array = colors[np.minimum(rows.astype(np.intp), len(colors) - 1)]
    if bad.any():
        picture[bad] = NONFINITE
    return picture


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
