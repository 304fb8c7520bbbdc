"""RDMs: how unlike the responses to any two samples are, ranked, and how alike two rankings are.

Representational similarity analysis: Kriegeskorte et al. 2008, "Representational similarity
analysis" (Front. Syst. Neurosci. 2), with correlation distance and Spearman's rank correlation.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from pipeline.common.arrays import Array
from pipeline.similarity.cross_products import ROUNDING


def distances(correlations: Array) -> Array:
    """Return 1 - correlation, with equal distances that rounding set apart made equal again."""
    return np.asarray(np.round(1 - correlations, 12))


def ranked(rdm: Array) -> Array:
    """Return the ranks of the distances between rows, `(row, row)` float64; NaN if all are equal.

    They are those of all pairs (equal ones share their mean), less their mean and divided by their
    length; 0 on the diagonal. The product of two, summed, is Spearman's rank correlation.
    """
    upper = np.triu_indices(len(rdm), 1)
    ranks = rankdata(rdm[upper])
    ranks -= ranks.mean()
    length = np.sqrt(2 * np.square(ranks).sum())
    square = np.zeros(rdm.shape)
    square[upper] = ranks / length if length > 0 else np.nan
    square += square.T
    return square


class WeightedSpearman:
    """Spearman's rank correlation of RDMs whose rows are drawn again, some of them more than once.

    A pair counts by the product of its weights; pairs of one row with itself are left out. The
    distances are ranked once, over all rows.
    """

    def __init__(self, weights: Array) -> None:
        """Take `(draw, row)`, how often each row is in each draw."""
        self._w = weights
        self._pairs = weights.sum(axis=1) ** 2 - np.square(weights).sum(axis=1)

    @np.errstate(divide="ignore", invalid="ignore")  # a draw of one row only: NaN
    def moments(self, ranks: Array) -> tuple[Array, Array]:
        """Return mean and variance of a layer's ranks for every draw, which `of` needs."""
        mean = ((self._w @ ranks) * self._w).sum(axis=1) / self._pairs
        square = ((self._w @ np.square(ranks)) * self._w).sum(axis=1) / self._pairs
        variance = square - mean**2
        return mean, np.where(variance > ROUNDING * square, variance, 0)

    def of(
        self, one: Array, two: Array, moments: tuple[Array, Array], others: tuple[Array, Array]
    ) -> Array:
        """Return the correlation of two layers' ranks for every draw, `(draw,)`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            product = ((self._w @ (one * two)) * self._w).sum(axis=1) / self._pairs
        variance = moments[1] * others[1]
        above = product - moments[0] * others[0]
        root = np.sqrt(np.where(variance > 0, variance, np.nan))
        return np.asarray(above / root)
