"""Intervals: how far a figure may be off, from samples that are drawn again and again.

Samples are drawn, not rows: the positions of one image are not independent. Of large datasets a
part is drawn from, as often as the dataset has samples (the bag of little bootstraps: Kleiner et
al. 2014, "A scalable bootstrap for massive data", J. R. Stat. Soc. B 76), and the interval is moved
to the figure of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.common.arrays import Array
from pipeline.similarity.rows import Rows

_PERCENTILES = (2.5, 97.5)
_ROWS = 1000
_BYTES = 256 * 2**20


def most_rows(layers: int) -> int:
    """Return from how many rows is drawn at most: their Grams take a quarter of a gigabyte."""
    return min(_ROWS, int(np.sqrt(_BYTES / 8 / layers)))


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """Draws of samples, with replacement.

    Attributes:
        rows: that are drawn from, as numbers of `Rows`.
        weights: how often each is in each draw, `(draw, row)` float64.
        whole: whether these are all rows.
    """

    rows: Array
    weights: Array
    whole: bool

    @classmethod
    def of(cls, rows: Rows, layers: int, count: int, seed: int) -> Resamples:
        """Draw from the samples, or from as many rows as take a quarter of a gigabyte."""
        numbers = rows.draw(most_rows(layers), seed)
        whole = len(numbers) == len(rows)
        return cls.from_rows(rows, numbers, len(rows.kept), count, seed, whole=whole)

    @classmethod
    def from_rows(
        cls, rows: Rows, numbers: Array, total: int, count: int, seed: int, *, whole: bool
    ) -> Resamples:
        """Draw `total` samples each time, from those that rows belong to."""
        samples, place = np.unique(numbers // rows.each, return_inverse=True)
        chance = np.random.default_rng([seed, 1])
        drawn = chance.multinomial(total, np.full(len(samples), 1 / len(samples)), size=count)
        return cls(rows=numbers, weights=drawn[:, place].astype(np.float64), whole=whole)

    def interval(self, drawn: Array, here: Array, value: Array) -> tuple[Array, Array]:
        """Return the 95 % percentile interval of figures: those of every draw, `(draw, …)`; `here`
        of the rows that are drawn from, each counted once; `value` of all rows.
        """
        # a draw of too few distinct samples gives none; what is undefined has no interval
        known = np.isfinite(drawn).any(axis=0) & np.isfinite(value)
        filled = np.where(known, drawn, 0)
        low, high = np.where(known, np.nanpercentile(filled, _PERCENTILES, axis=0), np.nan)
        move = 0 if self.whole else value - here
        return low + move, high + move
