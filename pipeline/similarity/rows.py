"""Rows of the compared layers: random access, the finite samples, and the outliers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, plural
from pipeline.similarity.features import LayerFeatures

FEWEST = 4
"""Rows that HSIC needs."""
_TRIMMED = 0.01


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of every layer over some of the matched samples."""

    features: Sequence[LayerFeatures]
    numbers: Sequence[Array]  # `Matched.rows`
    selected: Array  # indices of matched samples; rows are numbered over them

    @property
    def per_sample(self) -> int:
        """Rows of a sample."""
        return self.features[0].rows_per_sample

    def __len__(self) -> int:
        return len(self.selected) * self.per_sample

    def read(self, layer: int, rows: Array, *, centred: bool = True) -> Array:
        """Return some rows of a layer, `(row, feature)` float64; see `LayerFeatures.read`."""
        features = self.features[layer]
        samples, position = np.unique(rows // self.per_sample, return_inverse=True)
        numbers = self.numbers[features.number][self.selected[samples]]
        values = features.read(numbers, centred=centred)
        if self.per_sample == 1 and (np.diff(rows) > 0).all():
            return values
        return np.asarray(
            values.reshape(len(samples), self.per_sample, -1)[position, rows % self.per_sample]
        )

    def draw(self, count: int, seed: int) -> Array:
        """Return all row numbers, or about `count`, from as many samples as possible.

        Every sample has equally many; with `positions` at least four, if available.
        """
        if len(self) <= count:
            return np.arange(len(self))
        chance = np.random.default_rng(seed)
        samples = min(len(self.selected), max(1, count // min(4, self.per_sample)))
        positions = max(1, min(self.per_sample, count // samples))
        chosen = np.sort(chance.choice(len(self.selected), samples, replace=False))
        of_each = np.argsort(chance.random((samples, self.per_sample)), axis=1)[:, :positions]
        return np.asarray((chosen[:, None] * self.per_sample + np.sort(of_each, axis=1)).ravel())


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
            f"similarity: {plural(len(samples), 'sample')} left, {FEWEST} are needed; {why}"
        )
    return samples


def trimmed(count: int) -> int:
    """Return the number of rows to trim: 1 %, at least one."""
    return max(1, round(_TRIMMED * count))


def farthest(norms: Array, count: int) -> Array:
    """Return the sorted indices of the largest norms; ties prefer the first."""
    return np.sort(np.argsort(-norms, kind="stable")[:count])
