"""Random access to rows of the compared layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.common.arrays import Array
from pipeline.similarity.features import LayerFeatures
from pipeline.similarity.matching import Matched


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of every layer over some of the matched samples.

    Attributes:
        features: reader of each layer.
        matched: the samples.
        kept: used samples, as indices into `matched`; rows are numbered over them.
    """

    features: Sequence[LayerFeatures]
    matched: Matched
    kept: Array

    @property
    def each(self) -> int:
        """Rows of a sample."""
        return self.features[0].rows_per_sample

    def __len__(self) -> int:
        return len(self.kept) * self.each

    def read(self, layer: int, rows: Array, *, centred: bool = True) -> Array:
        """Return some rows of a layer, `(row, feature)` float64; see `LayerFeatures.read`."""
        features = self.features[layer]
        samples, place = np.unique(rows // self.each, return_inverse=True)
        numbers = self.matched.rows[features.number][self.kept[samples]]
        found = features.read(numbers, centred=centred)
        if self.each == 1 and len(samples) == len(rows) and (place[1:] > place[:-1]).all():
            return found
        return np.asarray(found.reshape(len(samples), self.each, -1)[place, rows % self.each])

    def draw(self, count: int, seed: int) -> Array:
        """Return all row numbers, or about `count`, from as many samples as possible.

        Every sample has equally many; with `Over.POSITIONS` at least four, if available.
        """
        if len(self) <= count:
            return np.arange(len(self))
        chance = np.random.default_rng(seed)
        samples = min(len(self.kept), max(1, count // min(4, self.each)))
        places = max(1, min(self.each, count // samples))
        chosen = np.sort(chance.choice(len(self.kept), samples, replace=False))
        of_each = np.argsort(chance.random((samples, self.each)), axis=1)[:, :places]
        return np.asarray((chosen[:, None] * self.each + np.sort(of_each, axis=1)).ravel())
