"""Charts: axes, bars and bands, painted as pixels with texts (matplotlib figures would dominate the
rendering time of an archive).
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from pipeline.common.arrays import Array
from pipeline.rendering.drawing.text_and_resize import INK, PAPER, SOFT_INK, width_of
from pipeline.rendering.drawing.tile_layout import Text, TileLayout

_TICK = 4
_UNITS = ("", "k", "M", "G", "T", "P")


class Chart:
    """A picture with axes."""

    def __init__(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """Start with blank paper; `scale` multiplies the text sizes."""
        self.pixels: Array = np.full((height, width, 3), PAPER, dtype=np.uint8)
        self._texts: list[Text] = []
        self._scale = scale

    def text(
        self, x: float, y: float, text: str, *, size: int, bold: bool = False, soft: bool = False,
        align: float = 0.0,
    ) -> None:  # fmt: skip
        """Write a line with its upper edge at `y`; `align` is the share of it left of `x`."""
        size = max(8, round(size * self._scale))
        width = width_of(text, size, bold=bold)
        left = min(x - align * width, self.pixels.shape[1] - 1 - width)
        color = SOFT_INK if soft else INK
        self._texts.append(
            Text(x=max(0, round(left)), y=round(y), text=text, size=size, bold=bold, color=color)
        )

    def layout(self) -> TileLayout:
        """Return the picture."""
        return TileLayout(paper=self.pixels, texts=tuple(self._texts))


class Frame:
    """An area of a chart with an x and a y axis."""

    def __init__(
        self, chart: Chart, box: tuple[int, int, int, int], x: tuple[float, float],
        y: tuple[float, float], *, log: bool = False, counted: str = "",
    ) -> None:  # fmt: skip
        """Set `box` (left, top, right, bottom) and both ranges.

        `log` applies to the y axis; the axis `counted`, `x` or `y`, has whole numbers.
        """
        self._chart = chart
        self._left, self._top, self._right, self._bottom = box
        self._x, self._y = _opened(*x), _opened(*y)
        self._log, self._counted = log, counted

    def columns(self, values: Array) -> Array:
        """Return values at equal steps of the x axis for every pixel column, `(column,)`: the
        largest of those that share one.
        """
        width = self._right - self._left
        first = ((np.arange(width) + 0.5) / width * len(values)).astype(int)
        first[0] = 0
        return np.asarray(np.fmax.reduceat(values, first))

    def fill(
        self, low: Array, high: Array, color: tuple[int, int, int], *, pad: float = 0.5
    ) -> None:
        """Paint every pixel column between two values `(column,)`, extended by `pad` pixels.

        NaN paints nothing.
        """
        rows = np.arange(self._top, self._bottom)[:, None]
        inside = (rows >= self._row(high) - pad) & (rows <= self._row(low) + pad)
        self._chart.pixels[self._top : self._bottom, self._left : self._right][inside] = color

    def axes(self, x_label: str, title: str) -> None:
        """Draw both axes with ticks and numbers."""
        pixels, line = self._chart.pixels, max(9, round(11 * self._chart._scale))
        pixels[self._top : self._bottom + 1, self._left - 1] = INK
        pixels[self._bottom, self._left - 1 : self._right] = INK
        span = self._right - self._left
        for value in _ticks(self._x, 6, whole=self._counted == "x"):
            at = self._left + round((value - self._x[0]) / (self._x[1] - self._x[0]) * (span - 1))
            pixels[self._bottom : self._bottom + _TICK, at] = INK
            self._chart.text(at, self._bottom + _TICK + 2, f"{value:.6g}", size=11, align=0.5)
        decades = range(int(np.log10(max(self._y[1], 1))) + 1)
        for value in (
            [10.0**k for k in decades]
            if self._log
            else _ticks(self._y, 5, whole=self._counted == "y")
        ):
            at = int(np.clip(self._row(np.array(value)), self._top, self._bottom))
            pixels[at, self._left - 1 - _TICK : self._left] = INK
            text = _short(value) if self._log else f"{value:.4g}"
            self._chart.text(self._left - 3 - _TICK, at - 0.7 * line, text, size=11, align=1.0)
        self._chart.text(
            (self._left + self._right) / 2, self._bottom + 1.6 * line + _TICK, x_label, size=11,
            soft=True, align=0.5,
        )  # fmt: skip
        self._chart.text(self._left, self._top - 1.8 * line, title, size=11, soft=True)

    def _row(self, value: Array) -> Array:
        low, high = self._y
        if self._log:
            low, high = np.log10(low), np.log10(high)
            with np.errstate(divide="ignore"):
                value = np.log10(value)
        share = (np.clip(value, low, high) - low) / (high - low)
        return np.asarray(self._bottom - 1 - share * (self._bottom - 1 - self._top))


def _opened(low: float, high: float) -> tuple[float, float]:
    half = max(0.5, abs(low) / 1000)
    return (low, high) if high > low else (low - half, low + half)


def _ticks(ends: tuple[float, float], max_ticks: int, *, whole: bool = False) -> Sequence[float]:
    ticks = MaxNLocator(max_ticks, steps=[1, 2, 5, 10], integer=whole).tick_values(*ends)
    return [float(value) for value in ticks if ends[0] <= value <= ends[1]]


def _short(value: float) -> str:
    """Return the axis label of a power of ten.

    >>> _short(100.0), _short(10_000.0), _short(1e6)
    ('100', '10k', '1M')
    """
    thousands = min(round(float(np.log10(value))) // 3, len(_UNITS) - 1)
    return f"{value / 1000**thousands:.0f}{_UNITS[thousands]}"
