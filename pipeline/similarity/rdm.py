"""RDMs (representational dissimilarity matrices), their ranks, and correlations of ranks.

Representational similarity analysis: Kriegeskorte et al. 2008, "Representational similarity
analysis" (Front. Syst. Neurosci. 2), with correlation distance and Spearman's rank correlation.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.similarity.cross_products import ROUNDING
from pipeline.similarity.features import LayerFeatures
from pipeline.similarity.gram import gram
from pipeline.similarity.rows import Rows


def distances(correlations: Array) -> Array:
    """Return 1 - correlation, rounded so that rounding errors do not break ties."""
    return np.asarray(np.round(1 - correlations, 12))


def ranked(rdm: Array) -> Array:
    """Return normalised ranks of the distances, `(row, row)` float64; NaN if all are equal.

    Ties share their mean rank. Ranks of all pairs have mean 0 and length 1, the diagonal is 0, so
    the summed product of two results is Spearman's rank correlation.
    """
    ranks = rankdata(squareform(rdm, checks=False))
    ranks -= ranks.mean()
    length = np.sqrt(2 * np.square(ranks).sum())
    return np.asarray(squareform(ranks / length if length > 0 else np.full_like(ranks, np.nan)))


class WeightedSpearman:
    """Spearman's rank correlation of RDMs with resampled rows.

    A pair is weighted by the product of its row weights; pairs of a row with itself are left out.
    Distances are ranked once, over all rows.
    """

    def __init__(self, weights: Array) -> None:
        """Set the weights: the count of each row in each draw, `(draw, row)`."""
        self._w = weights
        self._pairs = weights.sum(axis=1) ** 2 - np.square(weights).sum(axis=1)

    @np.errstate(divide="ignore", invalid="ignore")  # a draw of one row only: NaN
    def moments(self, ranks: Array) -> tuple[Array, Array]:
        """Return mean and variance of a layer's ranks for every draw, for `of`."""
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
        covariance = product - moments[0] * others[0]
        root = np.sqrt(np.where(variance > 0, variance, np.nan))
        return np.asarray(covariance / root)


def rdm_of(archive: Archive, layer: str, rows: Sequence[int], *, flatten: bool) -> Array:
    """Return 1 - Pearson's correlation between samples, `(sample, sample)` float64.

    Samples are flattened maps or means over positions. Rows and columns of constant or non-finite
    samples are NaN.
    """
    features = LayerFeatures(
        archive=archive, number=0, layer=archive.layers[layer],
        over="flatten" if flatten else "mean",
    )  # fmt: skip
    every = np.arange(len(rows))
    all_rows = Rows(features=[features], numbers=[np.asarray(rows, np.int64)], selected=every)
    rdm = distances(gram(all_rows, 0, every, patterns=True))
    defined = np.isfinite(np.diagonal(rdm))
    np.fill_diagonal(rdm, np.where(defined, 0, np.nan))
    return rdm
