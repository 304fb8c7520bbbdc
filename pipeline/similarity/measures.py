"""Measures of similarity: debiased CKA, RSA and Procrustes between all pairs of layers, each with
an interval, and without the rows that are farthest out.

A few rows far out can move CKA at will: Davari et al. 2022, "Reliability of CKA as a similarity
measure in deep learning".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.progress import Progress
from pipeline.similarity.backend import FEWEST, Form
from pipeline.similarity.bootstrap import Resamples, most_rows
from pipeline.similarity.cross_products import angle, cka_of
from pipeline.similarity.gram import WeightedHsic, gram
from pipeline.similarity.rdm import WeightedSpearman, distances, ranked
from pipeline.similarity.rows import Rows

_MOST_STIMULI = 5000
_RANK_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A measure of every pair of layers, `(layer, layer)` each; NaN where it is not defined.

    Attributes:
        value: over all rows (of RSA: over `rows` of them).
        low, high: ends of the 95 % interval; NaN without a bootstrap.
        trimmed: the value without the 1 % of rows of either layer that are farthest out.
        rows: how many it is over.
    """

    value: Array
    low: Array
    high: Array
    trimmed: Array
    rows: int

    def first(self, layers: int) -> Figures:
        """Return those of the first layers only."""
        part = slice(layers), slice(layers)
        return Figures(
            value=self.value[part], low=self.low[part], high=self.high[part],
            trimmed=self.trimmed[part], rows=self.rows,
        )  # fmt: skip


def pairs_of(layers: int) -> list[tuple[int, int]]:
    """Return the pairs of layers, each once, none with itself."""
    return [(i, j) for i in range(layers) for j in range(i)]


def _unknown(layers: int) -> Array:
    return np.full((layers, layers), np.nan)


def _fill(out: Array, pair: tuple[int, int], value: float) -> None:
    out[pair] = out[pair[::-1]] = value


def cka(form: Form, layers: int, bootstrap: int, seed: int) -> Figures:
    """Return debiased CKA; see `sums.cka_of`. Labels, where the form has them, come last."""
    value = cka_of(form.hsic())
    count = len(value)
    trimmed, low, high = _unknown(count), _unknown(count), _unknown(count)
    pairs = [*pairs_of(layers), *((i, i) for i in range(layers))]
    with Progress("cka", len(pairs), unit="pairs") as progress:
        for one, two in pairs:
            outliers = np.union1d(form.outliers[one], form.outliers[two])
            if len(form.rows) - len(outliers) >= FEWEST:
                without = cka_of(form.hsic_without(one, two, outliers))
                _fill(trimmed, (one, two), without[0, 1])
            progress.advance(1)
    if bootstrap:
        draws = Resamples.of(form.rows, count, bootstrap, seed)
        grams = [form.gram(i, draws.rows) for i in range(count)]
        once = np.ones((1, len(draws.rows)))
        with Progress("cka intervals", count * (count + 1) // 2, unit="pairs") as progress:
            drawn = cka_of(WeightedHsic(draws.weights).of_pairs(grams, progress))
        here = value if draws.whole else cka_of(WeightedHsic(once).of_pairs(grams))[0]
        low, high = draws.interval(drawn, here, value)
    return Figures(value=value, low=low, high=high, trimmed=trimmed, rows=len(form.rows))


def procrustes(form: Form, layers: int, bootstrap: int, seed: int) -> Figures:
    """Return the angular Procrustes distance; see `sums.angle` and `cka`.

    Its interval is that of the best turn found for all rows, kept as it is: right to first order,
    as that turn is the one that changes the least.
    """
    none = np.empty(0, np.int64)
    value, trimmed, low, high = (_unknown(layers) for _ in range(4))
    draws = Resamples.of(form.rows, layers, bootstrap, seed) if bootstrap else None
    for i in range(layers):
        for out, without in ((value, none), (trimmed, form.outliers[i])):
            out[i, i] = 0 if form.product(i, i, without)[1] > 0 else np.nan
        if draws is not None:
            low[i, i] = high[i, i] = value[i, i]
    with Progress("procrustes", len(pairs_of(layers)), unit="pairs") as progress:
        for pair in pairs_of(layers):
            product, squares = form.product(*pair, none)
            if not squares > 0:  # all that follows would be rounding
                progress.advance(1)
                continue
            left, singular, right = np.linalg.svd(product, full_matrices=False)
            _fill(value, pair, angle(singular.sum(), squares))
            outliers = np.union1d(*(form.outliers[i] for i in pair))
            product, squares = form.product(*pair, outliers)
            singular = np.linalg.svd(product, compute_uv=False)
            _fill(trimmed, pair, angle(singular.sum(), squares))
            if draws is not None:
                x, y = (form.centred_rows(i, draws.rows) for i in pair)
                along = ((x @ left) * (y @ right.T)).sum(axis=1)
                weights = np.vstack([np.ones(len(x)), draws.weights])
                spread = (weights @ np.square(x).sum(1)) * (weights @ np.square(y).sum(1))
                cosine = weights @ along / np.sqrt(np.where(spread > 0, spread, np.nan))
                angles = np.arccos(np.clip(cosine, 0, 1))
                ends = draws.interval(angles[1:], angles[0], value[pair])
                for out, end in zip((low, high), ends, strict=True):
                    _fill(out, pair, float(np.clip(end, 0, np.pi / 2)))
            progress.advance(1)
    return Figures(value=value, low=low, high=high, trimmed=trimmed, rows=len(form.rows))


def most_stimuli(layers: int) -> int:
    """Return over how many rows RSA is at most: RDMs are square, a gigabyte in all."""
    return min(_MOST_STIMULI, int(np.sqrt(_RANK_BYTES / 8 / layers)))


def rsa_bytes(layers: int, rows: int) -> int:
    """Return the memory that RSA takes: a matrix for every layer, and a few beside them."""
    return int(8 * min(rows, most_stimuli(layers)) ** 2 * (layers + 6))


def correlations_of(rows: Rows, chosen: Array) -> tuple[list[Array], list[int], Array]:
    """Return the correlations between chosen rows of every layer, `(row, row)` each; the layers in
    which enough rows have a pattern; and the places of the rows that have one in all of those.
    """
    layers = len(rows.features)
    with Progress("rsa", layers, unit="layers") as progress:
        correlations = []
        for layer in range(layers):
            correlations.append(gram(rows, layer, chosen, patterns=True))
            progress.advance(1)
    known = [i for i, of in enumerate(correlations) if np.isfinite(np.diagonal(of)).sum() >= FEWEST]
    finite = [np.isfinite(np.diagonal(correlations[i])) for i in known]
    good = np.flatnonzero(np.logical_and.reduce(finite)) if known else np.empty(0, np.int64)
    return correlations, known, good


def rsa(form: Form, layers: int, bootstrap: int, seed: int) -> Figures:
    """Return RSA, over at most 5,000 rows that are drawn at random; see `rdm` and `cka`.

    Rows that are constant in some layer have no pattern there and are left out.
    """
    rows = form.rows
    chosen = rows.draw(most_stimuli(layers), seed)
    correlations, known, good = correlations_of(rows, chosen)
    value, trimmed, low, high = (_unknown(layers) for _ in range(4))
    if len(good) < FEWEST:
        return Figures(value=value, low=low, high=high, trimmed=trimmed, rows=0)
    ranks = []
    for i in known:
        ranks.append(ranked(distances(correlations[i][np.ix_(good, good)])))
        correlations[i] = ranks[-1][:0]  # not both in memory
    numbers = chosen[good]
    once = WeightedSpearman(np.ones((1, len(good))))
    moments = [once.moments(of) for of in ranks]
    draws = RankDraws(rows, numbers, ranks, bootstrap, seed) if bootstrap else None
    pairs = [*pairs_of(len(known)), *((i, i) for i in range(len(known)))]
    with Progress("rsa", len(pairs), unit="pairs") as progress:
        for i, j in pairs:
            pair = known[i], known[j]
            found = once.of(ranks[i], ranks[j], moments[i], moments[j])[0]
            _fill(value, pair, found)
            kept = ~np.isin(numbers, np.union1d(*(form.outliers[layer] for layer in pair)))
            without = WeightedSpearman(kept[None].astype(np.float64))
            both = [without.moments(ranks[k]) for k in (i, j)]
            _fill(trimmed, pair, without.of(ranks[i], ranks[j], *both)[0])
            if draws is not None:
                ends = draws.interval_of(draws.drawn(i, j), found)
                _fill(low, pair, ends[0])
                _fill(high, pair, ends[1])
            progress.advance(1)
    return Figures(value=value, low=low, high=high, trimmed=trimmed, rows=len(good))


class RankDraws:
    """Intervals of RSA: stimuli are drawn again, their distances keep the ranks they have."""

    def __init__(
        self, rows: Rows, numbers: Array, ranks: Sequence[Array], count: int, seed: int
    ) -> None:
        """Draw from the rows that the ranks are of, or some of them."""
        chosen = np.arange(len(numbers))
        if len(numbers) > most_rows(len(ranks)):
            chance = np.random.default_rng([seed, 2])
            chosen = np.sort(chance.choice(len(numbers), most_rows(len(ranks)), replace=False))
        total = len(np.unique(numbers // rows.each))
        whole = len(chosen) == len(numbers)
        self._draws = Resamples.from_rows(rows, numbers[chosen], total, count, seed, whole=whole)
        self._ranks = [of[np.ix_(chosen, chosen)] for of in ranks]
        once = np.ones((1, len(chosen)))
        self._spearman = WeightedSpearman(np.vstack([once, self._draws.weights]))
        self._moments = [self._spearman.moments(of) for of in self._ranks]

    def drawn(self, one: int, two: int) -> Array:
        """Return the correlation of two RDMs, once as they are and then for every draw."""
        return self._spearman.of(
            self._ranks[one], self._ranks[two], self._moments[one], self._moments[two]
        )

    def interval_of(self, drawn: Array, value: float) -> tuple[float, float]:
        """Return the ends of the interval of what was `drawn`."""
        low, high = self._draws.interval(drawn[1:], drawn[0], np.asarray(value))
        return float(low), float(high)
