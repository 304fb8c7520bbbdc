"""Bootstrap intervals over samples.

Samples are resampled, not rows: the positions of one image are not independent. Large datasets are
resampled from a subset, at the size of the dataset (the bag of little bootstraps: Kleiner et al.
2014, "A scalable bootstrap for massive data", J. R. Stat. Soc. B 76), and the interval is shifted
to the value of the full dataset.
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
    """Return the maximum number of resampled rows: Grams take at most 256 MiB."""
    return min(_ROWS, int(np.sqrt(_BYTES / 8 / layers)))


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """Draws of samples with replacement."""

    rows: Array  # rows to draw from, as indices into `Rows`
    weights: Array  # count of each row in each draw, `(draw, row)` float64
    whole: bool  # whether these are all rows

    @classmethod
    def of(cls, rows: Rows, layers: int, count: int, seed: int) -> Resamples:
        """Draw from all samples, or from a subset of at most `most_rows` rows."""
        numbers = rows.draw(most_rows(layers), seed)
        whole = len(numbers) == len(rows)
        return cls.from_rows(rows, numbers, len(rows.selected), count, seed, whole=whole)

    @classmethod
    def from_rows(
        cls, rows: Rows, numbers: Array, total: int, count: int, seed: int, *, whole: bool
    ) -> Resamples:
        """Draw `total` samples per resample, from the samples of the rows."""
        samples, index = np.unique(numbers // rows.per_sample, return_inverse=True)
        chance = np.random.default_rng([seed, 1])
        counts = chance.multinomial(total, np.full(len(samples), 1 / len(samples)), size=count)
        weights = counts[:, index].astype(np.float64)
        if len(samples) == 1:  # every draw would be the same; without rows it is undefined
            weights[:] = 0
        return cls(rows=numbers, weights=weights, whole=whole)

    def interval(self, draws: Array, subset_value: Array, value: Array) -> tuple[Array, Array]:
        """Return the ends of the 95 % percentile interval; NaN where most draws are undefined.

        Args:
            draws: values of every draw, `(draw, …)`.
            subset_value: value over the resampled rows, each counted once.
            value: value over all rows.
        """
        # draws of too few distinct samples are NaN
        defined = (np.isfinite(draws).mean(axis=0) > 0.5) & np.isfinite(value)
        filled = np.where(defined, draws, 0)
        low, high = np.where(defined, np.nanpercentile(filled, _PERCENTILES, axis=0), np.nan)
        shift = 0 if self.whole else value - subset_value
        return low + shift, high + shift
