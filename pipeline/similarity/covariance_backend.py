"""Covariance backend: sums of products between features, in one pass over any number of rows.

`pipeline.similarity.gram.GramBackend` has the same methods and gives the same results from inner
products between rows, for layers with more features than rows.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import cycle

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.places import in_order
from pipeline.common.progress import Progress
from pipeline.similarity.cross_products import Sums
from pipeline.similarity.features import LayerFeatures
from pipeline.similarity.matching import Matched
from pipeline.similarity.rows import Rows, finite_samples, trimmed
from pipeline.similarity.separability import counted, right

_BLOCK = 32 * 2**20


class CovarianceBackend:
    """Sums over all samples, read once; layers are numbered over all archives, labels come last.

    Attributes:
        rows: rows of the samples that are finite in every layer.
        outliers: 1 % of rows (at least one) of each layer, farthest from its `shift`, as indices
            into `rows`.
    """

    def __init__(
        self, features: Sequence[LayerFeatures], matched: Matched, classes: Array | None
    ) -> None:
        self._features, self._matched, self._classes = features, matched, classes
        self._per_sample = features[0].rows_per_sample
        widths = [layer.width for layer in features]
        self.sums = Sums.empty([*widths, *([] if classes is None else [classes.max() + 1])])
        finite = np.ones((len(features), len(matched)), bool)
        far = _Farthest(trimmed(len(matched) * self._per_sample), len(features))
        for block, samples in self._blocks(np.arange(len(matched)), "similarity"):
            good = np.isfinite(self._norms(block)).reshape(len(samples), self._per_sample, -1)
            finite[:, samples] = good.all(axis=1).T
            keep = finite[:, samples].all(axis=0)
            if not keep.all():
                block = block[keep.repeat(self._per_sample)]
            far.add(self._norms(block), self.sums.rows)
            self.sums.add(block)
        selected = finite_samples(finite, features)
        self.rows = Rows(features=features, numbers=matched.rows, selected=selected)
        self.outliers = far.rows(trimmed(self.sums.rows))

    def _blocks(self, samples: Array, what: str) -> Iterator[tuple[Array, Array]]:
        """Yield blocks of rows of all layers side by side, with their samples.

        The next block is read while one is processed. Two buffers alternate, since allocating
        memory costs more than reading.
        """
        read_bytes = sum(layer.read_bytes for layer in self._features)
        step = max(1, _BLOCK // max(read_bytes, 8 * len(self.sums.products) * self._per_sample))
        parts = [samples[start : start + step] for start in range(0, len(samples), step)]
        blocks = [self.sums.block(min(step, len(samples)) * self._per_sample) for _ in parts[:2]]
        with (
            Progress(what, len(samples) * self._per_sample, unit="rows") as progress,
            ThreadPoolExecutor(1) as pool,
        ):
            read = in_order(pool, lambda pair: self._read(*pair), zip(parts, cycle(blocks)), 1)
            for part, block in zip(parts, read, strict=True):
                yield block, part
                progress.advance(len(part) * self._per_sample)

    def _read(self, samples: Array, memory: Array) -> Array:
        block = memory[: len(samples) * self._per_sample]
        for i, layer in enumerate(self._features):
            rows = self._matched.rows[layer.number][samples]
            block[:, self.sums.slice_of(i)] = layer.read(rows)
        if self._classes is not None:
            one_hot = self._one_hot(samples).repeat(self._per_sample, axis=0)
            block[:, self.sums.slice_of(len(self._features))] = one_hot
        with np.errstate(invalid="ignore"):
            self.sums.complete(block)
        return block

    def _norms(self, block: Array) -> Array:
        """Return ‖x‖² of every layer in complete rows, `(row, layer)`."""
        first = self.sums.features
        return block[:, first : first + len(self._features)]

    def hsic(self) -> Array:
        """Return HSIC of all pairs, `(layer, layer)`."""
        return self.sums.hsic()

    def hsic_without(self, one: int, two: int, rows: Array) -> Array:
        """Return HSIC of two layers without their outliers, `(2, 2)`."""
        scale = self.sums.of([one, two]).squared_kernels()
        hsic = self._without(one, two, rows).hsic(scale)
        constant = self.constant()[[one, two]].any()
        if constant or (np.diagonal(hsic) > 0).all():
            return hsic
        sums = self._inliers.of([one, two])  # the outliers are so large that the rest cancelled
        others = np.setdiff1d(np.concatenate(self.outliers), rows)
        sums.products += self._sums(one, two, others).products
        return sums.hsic()

    @cached_property
    def _inliers(self) -> Sums:
        """The sums without the outliers of any layer, from a second pass."""
        outlier = np.isin(np.arange(len(self.rows)), np.concatenate(self.outliers))
        sums, stop = Sums.empty(self.sums.widths), 0
        for block, _ in self._blocks(self.rows.selected, "cka without outliers"):
            start, stop = stop, stop + len(block)
            sums.add(block[~outlier[start:stop]])
        return sums

    def product(self, one: int, two: int, without: Array) -> tuple[Array, float]:
        """Return centred XᵀY of two layers without some rows, and ‖X‖² ‖Y‖² (0 if constant)."""
        sums = self._without(one, two, without)
        spread = [sums.spread(i, self.sums.norms[layer]) for i, layer in enumerate((one, two))]
        return sums.centred(0, 1), spread[0] * spread[1]

    def constant(self) -> Array:
        """Return which layers are constant up to rounding, `(layer,)` boolean."""
        return np.array([self.sums.spread(i) == 0 for i in range(len(self._features))])

    def _without(self, one: int, two: int, rows: Array) -> Sums:
        return self.sums.of([one, two]) - self._sums(one, two, rows)

    def _sums(self, one: int, two: int, rows: Array) -> Sums:
        sums = Sums.empty([self.sums.widths[layer] for layer in (one, two)])
        if len(rows):
            sums.add_features(np.hstack([self._rows(layer, rows) for layer in (one, two)]))
        return sums

    def _rows(self, layer: int, rows: Array) -> Array:
        if layer < len(self._features):
            return self.rows.read(layer, rows)
        assert self._classes is not None
        return self._one_hot(self.rows.selected[rows // self._per_sample])

    def _one_hot(self, samples: Array) -> Array:
        assert self._classes is not None
        return np.asarray(np.eye(self._classes.max() + 1)[self._classes[samples]])

    def centred_rows(self, layer: int, rows: Array) -> Array:
        """Return some rows less the mean of all, `(row, feature)`, in the features of `product`."""
        mean = self.sums.total[self.sums.slice_of(layer)] / self.sums.rows
        return self._rows(layer, rows) - mean

    def gram(self, layer: int, rows: Array) -> Array:
        """Return inner products between some rows, `(row, row)`."""
        centred = self.centred_rows(layer, rows)
        return np.asarray(centred @ centred.T)

    def accuracies(self) -> Array:
        """Return the share of rows nearest to the mean of their own class, `(layer,)`, 0..1.

        A row's own sample is left out of that mean; classes of one sample are ignored. Reads all
        samples a second time.
        """
        assert self._classes is not None
        labels, size = self.sums.slice_of(len(self._features)), self._per_sample
        totals = self.sums.cross[labels]
        counts = np.diagonal(totals[:, labels])
        hits = np.zeros(len(self._features), np.int64)
        for block, samples in self._blocks(self.rows.selected, "labels"):
            label, norms = self._classes[samples].repeat(size), self._norms(block)
            for i in range(len(self._features)):
                columns = self.sums.slice_of(i)
                means = totals[:, columns] / np.maximum(counts, 1)[:, None]
                x = block[:, columns]
                far = norms[:, i, None] - 2 * x @ means.T + np.square(means).sum(axis=1)
                of_sample = x.reshape(len(samples), size, -1).sum(axis=1).repeat(size, axis=0)
                others = totals[label, columns.start : columns.stop] - of_sample
                others /= np.maximum(counts[label] - size, 1)[:, None]
                own_far = np.square(x - others).sum(axis=1)
                norm = self.sums.norms[i] / self.sums.rows
                hits[i] += right(far, own_far, label, counts, size, norm).sum()
        return hits / counted(counts, size)


class _Farthest:
    """Streaming selection of the rows with the largest norm, for each layer; ties prefer the first.

    Kept are `(layer, row)`, from the largest norm.
    """

    def __init__(self, count: int, layers: int) -> None:
        self._count = count
        self._norms, self._rows = np.empty((layers, 0)), np.empty((layers, 0), np.int64)

    def add(self, squared: Array, first: int) -> None:
        """Add norms `(row, layer)` of rows numbered from `first`."""
        numbers = np.broadcast_to(first + np.arange(len(squared)), squared.T.shape)
        norms = np.hstack([self._norms, squared.T])
        order = np.argsort(-norms, axis=1, kind="stable")[:, : self._count]
        self._norms = np.take_along_axis(norms, order, axis=1)
        self._rows = np.take_along_axis(np.hstack([self._rows, numbers]), order, axis=1)

    def rows(self, count: int) -> list[Array]:
        """Return the numbers of the farthest rows of every layer, in order."""
        return list(np.sort(self._rows[:, :count], axis=1))
