"""Gram backend: inner products between rows, for layers with more features than rows."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.progress import Progress
from pipeline.similarity.backend import farthest, kept_samples, trimmed
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
        every = Rows(features=features, matched=matched, kept=np.arange(len(matched)))
        grams = []
        finite = np.ones((len(features), len(matched)), bool)
        with Progress("similarity", len(features), unit="layers") as progress:
            for i in range(len(features)):
                grams.append(gram(every, i, np.arange(len(every))))
                rows = np.isfinite(np.diagonal(grams[i])).reshape(len(matched), every.each)
                finite[i] = rows.all(axis=1)
                progress.advance(1)
        kept = kept_samples(finite, features)
        self.rows = Rows(features=features, matched=matched, kept=kept)
        if len(kept) < len(matched):
            of_kept = np.flatnonzero(np.repeat(np.isin(every.kept, kept), every.each))
            grams = [each[np.ix_(of_kept, of_kept)] for each in grams]
        count = trimmed(len(self.rows))
        self.outliers = [farthest(np.diagonal(each), count) for each in grams]
        if classes:
            self._own = classes.of[kept].repeat(every.each)
            self._one_hot = np.eye(len(classes.counts))[self._own]
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
        own, one_hot, each = self._own, self._one_hot, self.rows.each
        counts = one_hot.sum(axis=0)
        starts = np.arange(0, len(own), each)
        others = np.maximum(counts[own] - each, 1)
        rows = np.arange(len(own))
        found = []
        for inner in self.grams[:-1]:
            squared, with_class = np.diagonal(inner), inner @ one_hot
            class_squared = (one_hot * with_class).sum(axis=0)
            number = np.maximum(counts, 1)
            far = squared[:, None] - 2 * with_class / number + class_squared / number**2
            with_sample = np.add.reduceat(inner, starts, axis=1)[rows, rows // each]
            sample_squared = np.add.reduceat(with_sample, starts).repeat(each)
            sample_class = np.add.reduceat(with_class, starts).repeat(each, axis=0)[rows, own]
            mean_squared = class_squared[own] - 2 * sample_class + sample_squared
            with_mean = with_class[rows, own] - with_sample
            own_far = squared - 2 * with_mean / others + mean_squared / others**2
            found.append(right(far, own_far, own, counts, each).sum() / counted(counts, each))
        return np.array(found)
