"""Interface of the two backends for linear kernels, which give the same results.

The covariance backend sums products between features in one pass over any number of rows. The Gram
backend uses inner products between rows, for layers with more features than rows.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError
from pipeline.similarity.features import LayerFeatures
from pipeline.similarity.rows import Rows

FEWEST = 4
"""Rows that HSIC needs."""
_TRIMMED = 0.01


class Backend(Protocol):
    """Sums that all measures use; layers are numbered over all archives, labels come last.

    Attributes:
        rows: rows of the samples that are finite in every layer.
        outliers: 1 % of rows (at least one) of each layer, farthest from its mean over the archive,
            as indices into `rows`.
    """

    rows: Rows
    outliers: list[Array]

    def hsic(self) -> Array:
        """Return HSIC of all pairs, `(layer, layer)`."""

    def hsic_without(self, one: int, two: int, rows: Array) -> Array:
        """Return HSIC of two layers without some rows, `(2, 2)`."""

    def product(self, one: int, two: int, without: Array) -> tuple[Array, float]:
        """Return centred XᵀY of two layers without some rows, and ‖X‖² ‖Y‖² (0 if constant)."""

    def constant(self) -> Array:
        """Return which layers are constant up to rounding, `(layer,)` boolean."""

    def centred_rows(self, layer: int, rows: Array) -> Array:
        """Return some rows less the mean of all, `(row, feature)`, in the features of `product`."""

    def gram(self, layer: int, rows: Array) -> Array:
        """Return inner products between some rows, `(row, row)`."""

    def accuracies(self) -> Array:
        """Return the share of rows nearest to the mean of their own class, `(layer,)`, 0..1.

        A row's own sample is left out of that mean; classes of one sample are ignored.
        """


def finite_samples(finite: Array, features: Sequence[LayerFeatures]) -> Array:
    """Return the samples that are finite in every layer, from `(layer, sample)` booleans."""
    samples = np.flatnonzero(finite.all(axis=0))
    per_sample = features[0].rows_per_sample
    if len(samples) * per_sample < FEWEST:
        worst = int(finite.sum(axis=1).argmin())
        total = finite.shape[1]
        why = (
            f"{total - int(finite[worst].sum())} of {total} are not finite in "
            f"{features[worst].layer.name}; leave it out with --layers"
            if not finite.all()
            else "use more samples"
        )
        raise ConfigError(
            f"similarity: {len(samples)} samples are left, {FEWEST} are needed; {why}"
        )
    return samples


def trimmed(count: int) -> int:
    """Return the number of rows to trim: 1 %, at least one."""
    return max(1, round(_TRIMMED * count))


def farthest(norms: Array, count: int) -> Array:
    """Return the sorted indices of the largest norms; ties prefer the first."""
    return np.sort(np.argsort(-norms, kind="stable")[:count])
