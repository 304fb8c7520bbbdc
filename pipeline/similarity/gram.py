"""Gram matrices of rows, `(row, row)`, HSIC of resampled rows, and the backend of both."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.progress import Progress, track
from pipeline.similarity.cross_products import ROUNDING, without_rounding
from pipeline.similarity.features import LayerFeatures
from pipeline.similarity.matching import Matched
from pipeline.similarity.rows import Rows, farthest, finite_samples, trimmed
from pipeline.similarity.separability import counted, right

_TILE = 64 * 2**20


def gram(rows: Rows, layer: int, chosen: Array, *, patterns: bool = False) -> Array:
    """Return inner products of rows of a layer, `(row, row)` float64; NaN where one is not finite.

    Tiles of rows are read, so that the features of two tiles are in memory at a time. With
    `patterns`, rows are without their own mean, at length 1: correlations between rows; a row that
    is constant is NaN then.
    """
    step = max(rows.per_sample, _TILE // (8 * rows.features[layer].width))
    starts = range(0, len(chosen), step)
    out = np.empty((len(chosen), len(chosen)))

    def tile(start: int) -> Array:
        block = rows.read(layer, chosen[start : start + step], centred=not patterns)
        block[~np.isfinite(block).all(axis=1)] = np.nan
        return as_patterns(block) if patterns else block

    for start in starts:
        first_tile = tile(start)
        for other in range(0, start + 1, step):
            second_tile = first_tile if other == start else tile(other)
            product = first_tile @ second_tile.T
            out[start : start + step, other : other + step] = product
            out[other : other + step, start : start + step] = product.T
    return out


def as_patterns(block: Array) -> Array:
    """Return rows without their own mean, at length 1; NaN where a row is constant."""
    largest = np.abs(block).max(axis=1, keepdims=True, initial=0)
    block = block - block.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(block).sum(axis=1, keepdims=True))
    defined = length > ROUNDING * np.sqrt(block.shape[1]) * largest
    return np.asarray(np.divide(block, length, out=np.full_like(block, np.nan), where=defined))


class WeightedHsic:
    """HSIC with a linear kernel of resampled rows.

    The estimate of `Sums.hsic` is an average over distinct rows. Here each counts by the product of
    the weights; a row is never paired with itself, though it be drawn twice.
    """

    def __init__(self, weights: Array) -> None:
        """Set the weights: the count of each row in each draw, `(draw, row)`."""
        self._w = weights
        self._w2 = weights**2
        p1, p2, p3, p4 = (np.sum(weights**k, axis=1) for k in (1, 2, 3, 4))
        self._pairs = p1**2 - p2
        self._triples = p1**3 - 3 * p1 * p2 + 2 * p3
        self._quadruples = p1**4 - 6 * p1**2 * p2 + 3 * p2**2 + 8 * p1 * p3 - 6 * p4

    def of_pairs(self, grams: Sequence[Array], progress: Progress | None = None) -> Array:
        """Return HSIC of all pairs of layers for every draw, `(draw, layer, layer)`."""
        sums = [self._w @ gram - self._w * np.diagonal(gram) for gram in grams]
        out = np.empty((len(self._w), len(grams), len(grams)))
        scale = np.empty((len(self._w), len(grams)))
        for i, one in enumerate(grams):
            with np.errstate(divide="ignore", invalid="ignore"):
                scale[:, i] = ((self._w @ np.square(one)) * self._w).sum(axis=1) / self._pairs
            for j in range(i + 1):
                out[:, i, j] = out[:, j, i] = self._of(one, grams[j], sums[i], sums[j])
                if progress:
                    progress.advance(1)
        return without_rounding(out, scale)

    def _of(self, one: Array, two: Array, one_sums: Array, two_sums: Array) -> Array:
        """Return HSIC of two Grams for every draw, `(draw,)`.

        `one_sums` are Σ_j w_j K_ij without j = i, `(draw, row)`.
        """
        product = one * two
        np.fill_diagonal(product, 0)
        once, twice = self._w @ product, self._w2 @ product
        pairs = (once * self._w).sum(axis=1)
        triples = (self._w * one_sums * two_sums).sum(axis=1) - (once * self._w2).sum(axis=1)
        separate = (self._w * one_sums).sum(axis=1) * (self._w * two_sums).sum(axis=1)
        shared = (self._w2 * one_sums * two_sums).sum(axis=1)
        quadruples = separate - 4 * shared + 2 * (twice * self._w2).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # fewer than 4 distinct rows: NaN
            return np.asarray(
                pairs / self._pairs - 2 * triples / self._triples + quadruples / self._quadruples
            )


def centred(gram: Array) -> Array:
    """Return the inner products of rows without their mean; exactly 0 if the rows are constant."""
    mean = gram.mean(axis=0)
    out = gram - mean - mean[:, None] + mean.mean()
    return np.asarray(out if np.trace(out) > ROUNDING * np.trace(gram) else np.zeros_like(out))


def square_root(gram: Array) -> Array:
    """Return rows that have the inner products of a Gram's, `(row, component)`."""
    values, vectors = np.linalg.eigh(gram)
    positive = values > values[-1] * len(gram) * np.finfo(np.float64).eps
    return np.asarray(vectors[:, positive] * np.sqrt(values[positive]))


class GramBackend:
    """Inner products of every layer, read once, for layers with more features than rows.

    Methods and results are those of `pipeline.similarity.covariance_backend.CovarianceBackend`.
    """

    def __init__(
        self, features: Sequence[LayerFeatures], matched: Matched, classes: Array | None
    ) -> None:
        every = Rows(features=features, numbers=matched.rows, selected=np.arange(len(matched)))
        grams = []
        finite = np.ones((len(features), len(matched)), bool)
        for i in track("similarity", range(len(features)), unit="layers"):
            grams.append(gram(every, i, np.arange(len(every))))
            rows = np.isfinite(np.diagonal(grams[i])).reshape(len(matched), every.per_sample)
            finite[i] = rows.all(axis=1)
        selected = finite_samples(finite, features)
        self.rows = Rows(features=features, numbers=matched.rows, selected=selected)
        if len(selected) < len(matched):
            rows = np.flatnonzero(np.isin(every.selected, selected).repeat(every.per_sample))
            for i in range(len(grams)):  # one copy at a time
                grams[i] = grams[i][np.ix_(rows, rows)]
        count = trimmed(len(self.rows))
        self.outliers = [farthest(np.diagonal(matrix), count) for matrix in grams]
        if classes is not None:
            self._label = classes[selected].repeat(every.per_sample)
            self._one_hot = np.eye(classes.max() + 1)[self._label]
            grams.append(self._one_hot @ self._one_hot.T)
        # a constant part of the rows would widen the intervals: draws do not cancel it
        for i in range(len(grams)):
            grams[i] = centred(grams[i])
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
            hits = right(far, own_far, label, counts, size, squared.mean()).sum()
            shares.append(hits / counted(counts, size))
        return np.array(shares)
