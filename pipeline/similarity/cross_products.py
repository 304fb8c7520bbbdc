"""Sums of cross products for linear CKA and Procrustes, accumulated in one pass over rows.

The features of all layers are concatenated, `(row, feature)`, so one matrix product covers all
pairs. The sums of disjoint subsets add up to those of the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.common.arrays import Array

ROUNDING = 1e-12
"""Relative size below which a difference counts as rounding error (4 digits remain)."""


@dataclass
class Sums:
    """Sums over rows `x`, `y`, … of concatenated layers.

    Attributes:
        widths: features of each layer.
        products: Σ r rᵀ of all rows r = (features of every layer, ‖x‖² of every layer, 1), float64;
            the other sums are views of it.
    """

    widths: tuple[int, ...]
    products: Array

    @classmethod
    def empty(cls, widths: Sequence[int]) -> Sums:
        """Return sums over zero rows."""
        size = sum(widths) + len(widths) + 1
        return cls(tuple(widths), np.zeros((size, size)))

    @property
    def features(self) -> int:
        """Features of all layers."""
        return sum(self.widths)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.products[-1, -1])

    @property
    def cross(self) -> Array:
        """Σ x yᵀ for every pair, `(feature, feature)`."""
        return self.products[: self.features, : self.features]

    @property
    def total(self) -> Array:
        """Σ x, `(feature,)`."""
        return self.products[-1, : self.features]

    @property
    def norms(self) -> Array:
        """Σ ‖x‖², `(layer,)`."""
        return self.products[-1, self.features : -1]

    @property
    def weighted(self) -> Array:
        """Σ ‖x‖² y, `(layer, feature)`."""
        return self.products[self.features : -1, : self.features]

    @property
    def norm_products(self) -> Array:
        """Σ ‖x‖² ‖y‖², `(layer, layer)`."""
        return self.products[self.features : -1, self.features : -1]

    def block(self, rows: int) -> Array:
        """Return a buffer for rows; fill in the features, then call `complete`."""
        return np.empty((rows, len(self.products)))

    def complete(self, block: Array) -> None:
        """Compute the columns after the features: the squared norms, and 1."""
        squared = block[:, self.features : -1]
        for i in range(len(self.widths)):
            part = block[:, self.slice_of(i)]
            np.einsum("ij,ij->i", part, part, out=squared[:, i])
        block[:, -1] = 1

    def add(self, block: Array) -> None:
        """Add complete rows; see `block`."""
        self.products += block.T @ block  # one product: BLAS computes half of it

    def add_features(self, features: Array) -> None:
        """Add rows of the features of all layers, `(row, feature)`."""
        block = self.block(len(features))
        block[:, : self.features] = features
        self.complete(block)
        self.add(block)

    def __sub__(self, other: Sums) -> Sums:
        """Return the sums without the rows of `other`."""
        assert self.widths == other.widths
        return Sums(self.widths, self.products - other.products)

    @property
    def _starts(self) -> Array:
        """First feature of every layer."""
        return np.cumsum([0, *self.widths[:-1]])

    def slice_of(self, layer: int) -> slice:
        """Return the features of a layer."""
        start = int(self._starts[layer])
        return slice(start, start + self.widths[layer])

    def of(self, layers: Sequence[int]) -> Sums:
        """Return the sums of some layers only."""
        features = [np.arange(self.features)[self.slice_of(i)] for i in layers]
        columns = np.concatenate([*features, self.features + np.array(layers), [-1]])
        return Sums(tuple(self.widths[i] for i in layers), self.products[np.ix_(columns, columns)])

    def centred(self, one: int, two: int) -> Array:
        """Return Σ (x - mean)(y - mean)ᵀ of two layers, `(feature, feature)`."""
        x, y = self.slice_of(one), self.slice_of(two)
        return np.asarray(self.cross[x, y] - np.outer(self.total[x], self.total[y]) / self.rows)

    def squared_kernels(self) -> Array:
        """Return the sum of a layer's squared inner products between rows, `(layer,)`."""
        slices = [self.slice_of(i) for i in range(len(self.widths))]
        return np.array([np.square(self.cross[part, part]).sum() for part in slices])

    def hsic(self, scale: Array | None = None) -> Array:
        """Return the unbiased estimate of HSIC with a linear kernel, `(layer, layer)`.

        The HSIC of a constant layer with itself is exactly 0.

        HSIC₁ of Song et al. 2012, "Feature selection via dependence maximization" (JMLR 13), eq. 5,
        with its n × n matrices written as sums over rows; any constant added to x or y cancels.

        Args:
            scale: `squared_kernels` of the sums before a subtraction.
        """
        n, starts = self.rows, self._starts
        layers = len(self.widths)
        traces, mixed = np.empty((layers, layers)), np.empty((layers, layers))
        for i in range(layers):  # one layer at a time, to avoid a second full matrix
            part = self.cross[self.slice_of(i)]
            traces[i] = np.add.reduceat(np.square(part).sum(axis=0), starts)
            mixed[i] = np.add.reduceat(self.total[self.slice_of(i)] @ part * self.total, starts)
        traces -= self.norm_products
        of_sum = np.add.reduceat(np.square(self.total), starts) - self.norms
        along = np.add.reduceat(self.weighted * self.total, starts, axis=1)
        mixed += self.norm_products - along - along.T
        rest = np.outer(of_sum, of_sum) / ((n - 1) * (n - 2)) - 2 * mixed / (n - 2)
        estimate = (traces + rest) / (n * (n - 3))
        return without_rounding(
            estimate, (self.squared_kernels() if scale is None else scale) / n**2
        )

    def spread(self, layer: int, scale: float | None = None) -> float:
        """Return Σ ‖x - mean‖² of a layer, 0 if constant.

        `scale` is Σ ‖x‖² of the sums before a subtraction.
        """
        total = self.total[self.slice_of(layer)]
        spread = float(self.norms[layer] - total @ total / self.rows)
        return spread if spread > ROUNDING * (scale or self.norms[layer]) else 0.0


def without_rounding(hsic: Array, scale: Array) -> Array:
    """Set diagonal entries of HSIC `(…, layer, layer)` that are rounding errors to 0, in place.

    `scale` is the mean of a layer's squared inner products, `(…, layer)`.
    """
    diagonal = np.einsum("...ii->...i", hsic)
    diagonal[diagonal <= ROUNDING * scale] = 0
    return hsic


def cka_of(hsic: Array) -> Array:
    """Return HSIC(x, y) / √(HSIC(x, x) HSIC(y, y)), `(…, layer, layer)`; NaN for constant layers.

    Debiased CKA: Kornblith et al. 2019, "Similarity of neural network representations revisited",
    with the unbiased HSIC of Nguyen et al. 2021, "Do wide and deep networks learn the same
    things?". At most 1, about 0 for independent layers (may be slightly negative).
    """
    diagonal = np.diagonal(hsic, axis1=-2, axis2=-1)
    diagonal = np.sqrt(np.where(np.isfinite(diagonal) & (diagonal > 0), diagonal, np.nan))
    return np.asarray(hsic / (diagonal[..., :, None] * diagonal[..., None, :]))


def angle(nuclear: float, squares: float) -> float:
    """Return arccos(‖XᵀY‖⁎ / (‖X‖ ‖Y‖)), radians 0..π/2: distance up to rotation and scale.

    The angular Procrustes distance: Williams et al. 2021, "Generalized shape metrics on neural
    representations", eq. 4.

    Args:
        nuclear: sum of the singular values of XᵀY for centred X and Y.
        squares: ‖X‖² ‖Y‖².
    """
    if not squares > 0:
        return float("nan")
    return float(np.arccos(np.clip(nuclear / np.sqrt(squares), 0, 1)))
