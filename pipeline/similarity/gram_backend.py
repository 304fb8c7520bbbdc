"""Gram backend: inner products between rows, for layers with more features than rows."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.progress import Progress
from pipeline.similarity.backend import farthest, finite_samples, trimmed
from pipeline.similarity.cross_products import ROUNDING
from pipeline.similarity.features import LayerFeatures
from pipeline.similarity.gram import WeightedHsic, gram, square_root
from pipeline.similarity.matching import Matched
from pipeline.similarity.rows import Rows
from pipeline.similarity.separability import Classes, counted, right


class GramBackend:
    """Inner products of every layer, read once; see `Backend`."""

    def __init__(
        self, features: Sequence[LayerFeatures], matched: Matched, classes: Classes | None
    ) -> None:
        every = Rows(features=features, matched=matched, selected=np.arange(len(matched)))
        grams = []
        finite = np.ones((len(features), len(matched)), bool)
        with Progress("similarity", len(features), unit="layers") as progress:
            for i in range(len(features)):
                grams.append(gram(every, i, np.arange(len(every))))
                rows = np.isfinite(np.diagonal(grams[i])).reshape(len(matched), every.per_sample)
                finite[i] = rows.all(axis=1)
                progress.advance(1)
        selected = finite_samples(finite, features)
        self.rows = Rows(features=features, matched=matched, selected=selected)
        if len(selected) < len(matched):
            rows = np.flatnonzero(np.isin(every.selected, selected).repeat(every.per_sample))
            grams = [matrix[np.ix_(rows, rows)] for matrix in grams]
        count = trimmed(len(self.rows))
        self.outliers = [farthest(np.diagonal(matrix), count) for matrix in grams]
        if classes:
            self._label = classes.of[selected].repeat(every.per_sample)
            self._one_hot = np.eye(len(classes.counts))[self._label]
            grams.append(self._one_hot @ self._one_hot.T)
        self.grams = grams
        self._square_root = cache(lambda layer: square_root(self.grams[layer]))

    def hsic(self) -> Array:
        return self._hsic(range(len(self.grams)), np.empty(0, np.int64))

    def hsic_without(self, one: int, two: int, rows: Array) -> Array:
        return self._hsic((one, two), rows)

    def _hsic(self, layers: Sequence[int], without: Array) -> Array:
        weights = np.ones((1, len(self.grams[0])))
        weights[0, without] = 0
        pairs = WeightedHsic(weights).of_pairs([self.grams[layer] for layer in layers])
        return np.asarray(pairs[0])

    def product(self, one: int, two: int, without: Array) -> tuple[Array, float]:
        x, y = (np.delete(self._square_root(i), without, axis=0) for i in (one, two))
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        spread = [self._spread(i, without) for i in (one, two)]
        return x.T @ y, spread[0] * spread[1]

    def constant(self) -> Array:
        none = np.empty(0, np.int64)
        layers = range(len(self.rows.features))
        return np.array([self._spread(i, none) == 0 for i in layers])

    def _spread(self, layer: int, without: Array) -> float:
        """Return Σ ‖x - mean‖² of a layer without some rows, 0 where it is constant."""
        inner = np.delete(np.delete(self.grams[layer], without, axis=0), without, axis=1)
        squares = float(np.trace(inner))
        spread = squares - float(inner.sum()) / len(inner)
        return spread if spread > ROUNDING * squares else 0.0

    def centred_rows(self, layer: int, rows: Array) -> Array:
        return self._square_root(layer)[rows]

    def gram(self, layer: int, rows: Array) -> Array:
        return np.asarray(self.grams[layer][np.ix_(rows, rows)])

    def accuracies(self) -> Array:
        label, one_hot, size = self._label, self._one_hot, self.rows.per_sample
        counts = one_hot.sum(axis=0)
        starts = np.arange(0, len(label), size)
        others = np.maximum(counts[label] - size, 1)
        rows = np.arange(len(label))
        shares = []
        for inner in self.grams[:-1]:
            squared, with_class = np.diagonal(inner), inner @ one_hot
            class_squared = (one_hot * with_class).sum(axis=0)
            number = np.maximum(counts, 1)
            far = squared[:, None] - 2 * with_class / number + class_squared / number**2
            with_sample = np.add.reduceat(inner, starts, axis=1)[rows, rows // size]
            sample_squared = np.add.reduceat(with_sample, starts).repeat(size)
            sample_class = np.add.reduceat(with_class, starts).repeat(size, axis=0)[rows, label]
            mean_squared = class_squared[label] - 2 * sample_class + sample_squared
            with_mean = with_class[rows, label] - with_sample
            own_far = squared - 2 * with_mean / others + mean_squared / others**2
            shares.append(right(far, own_far, label, counts, size).sum() / counted(counts, size))
        return np.array(shares)
