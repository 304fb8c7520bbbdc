"""Forms: linear kernels by features or by rows, two ways to the same figures.

By features: sums of products between features, in one pass over any number of rows. By rows: inner
products between rows, for layers with more features than there are rows.
"""

from __future__ import annotations

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
    """What all measures are made of; layers are counted over all archives, labels come last.

    Attributes:
        rows: those that count: of samples of which every layer is finite.
        outliers: of every layer, the 1 % of rows (at least one) farthest from its mean over the
            archive, as numbers of `rows`.
    """

    rows: Rows
    outliers: list[Array]

    def hsic(self) -> Array:
        """Return HSIC of all pairs, `(layer, layer)`."""

    def hsic_without(self, one: int, two: int, rows: Array) -> Array:
        """Return HSIC of two layers without some rows, `(2, 2)`."""

    def product(self, one: int, two: int, without: Array) -> tuple[Array, float]:
        """Return XᵀY of two layers, centred, without some rows, and ‖X‖² ‖Y‖²: 0 where either is
        constant.
        """

    def constant(self) -> Array:
        """Return whether all rows of a layer are equal, but for rounding, `(layer,)` boolean."""

    def centred_rows(self, layer: int, rows: Array) -> Array:
        """Return some rows less the mean of all, `(row, feature)`, in the features of `product`."""

    def gram(self, layer: int, rows: Array) -> Array:
        """Return inner products between some rows, `(row, row)`."""

    def accuracies(self) -> Array:
        """Return the share of rows nearest to the mean of their own class, `(layer,)`, 0..1.

        A row's own sample is left out of that mean; classes of one sample are left out altogether.
        """


def kept_samples(finite: Array, features: Sequence[LayerFeatures]) -> Array:
    """Return the samples of which every layer is finite, from `(layer, sample)` booleans."""
    kept = np.flatnonzero(finite.all(axis=0))
    each = features[0].rows_per_sample
    if len(kept) * each < FEWEST:
        worst = int(finite.sum(axis=1).argmin())
        of = finite.shape[1]
        why = (
            f"{of - int(finite[worst].sum())} of {of} are not finite in "
            f"{features[worst].layer.name}; leave it out with --layers"
            if not finite.all()
            else "give more samples"
        )
        raise ConfigError(f"similarity: {len(kept)} samples are left, {FEWEST} are needed; {why}")
    return kept


def trimmed(count: int) -> int:
    """Return how many of so many rows are the 1 % that is left out, at least one."""
    return max(1, round(_TRIMMED * count))


def farthest(norms: Array, count: int) -> Array:
    """Return the places of the largest numbers in their order, the first of equal ones."""
    return np.sort(np.argsort(-norms, kind="stable")[:count])
