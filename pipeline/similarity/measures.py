"""Similarity measures: debiased CKA, RSA and Procrustes, with intervals and trimmed values.

Trimmed values leave out outlier rows, since a few of them can dominate CKA: Davari et al.
2022, "Reliability of CKA as a similarity measure in deep learning".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.progress import Progress, track
from pipeline.similarity.bootstrap import Resamples, most_rows
from pipeline.similarity.covariance_backend import CovarianceBackend
from pipeline.similarity.cross_products import angle, cka_of
from pipeline.similarity.gram import GramBackend, WeightedHsic, gram
from pipeline.similarity.rdm import WeightedSpearman, distances, ranked
from pipeline.similarity.rows import FEWEST, Rows

Backend = CovarianceBackend | GramBackend
PARTS = ("value", "low", "high", "trimmed")
"""Fields of `Figures` with a number for every pair of layers."""
_MOST_STIMULI = 5000
_RANK_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Values of a measure for every pair of layers, `(layer, layer)` each; NaN where undefined."""

    value: Array  # over all rows (RSA: over `rows` of them)
    low: Array  # end of the 95 % interval; NaN where undefined, like `high`
    high: Array
    trimmed: Array  # without the 1 % of rows of either layer that are farthest out
    rows: int

    @classmethod
    def unknown(cls, layers: int, rows: int) -> Figures:
        """Return NaN for every pair; see `fill`."""
        return cls(**{part: np.full((layers, layers), np.nan) for part in PARTS}, rows=rows)

    def fill(self, pair: tuple[int, int], **values: float) -> None:
        """Set values of a pair of layers, in both orders."""
        for part, value in values.items():
            getattr(self, part)[pair] = getattr(self, part)[pair[::-1]] = value

    def first(self, layers: int) -> Figures:
        """Return the values of the first layers only."""
        return replace(self, **{part: getattr(self, part)[:layers, :layers] for part in PARTS})


def pairs_of(layers: int) -> list[tuple[int, int]]:
    """Return every pair of layers once, also of a layer with itself."""
    return [(i, j) for i in range(layers) for j in range(i + 1)]


def cka(backend: Backend, layers: int, bootstrap: int, seed: int) -> Figures:
    """Return debiased CKA; see `cross_products.cka_of`. Labels of the backend come last."""
    value = cka_of(backend.hsic())
    count = len(value)
    figures = replace(Figures.unknown(count, len(backend.rows)), value=value)
    for one, two in track("cka", pairs_of(layers), unit="pairs"):
        outliers = np.union1d(backend.outliers[one], backend.outliers[two])
        if len(backend.rows) - len(outliers) >= FEWEST:
            without = cka_of(backend.hsic_without(one, two, outliers))
            figures.fill((one, two), trimmed=without[0, 1])
    if bootstrap:
        draws = Resamples.of(backend.rows, count, bootstrap, seed)
        grams = [backend.gram(i, draws.rows) for i in range(count)]
        once = np.ones((1, len(draws.rows)))
        with Progress("cka intervals", count * (count + 1) // 2, unit="pairs") as progress:
            resampled = cka_of(WeightedHsic(draws.weights).of_pairs(grams, progress))
        subset_value = value if draws.whole else cka_of(WeightedHsic(once).of_pairs(grams))[0]
        low, high = draws.interval(resampled, subset_value, value)
        figures = replace(figures, low=low, high=high)
    return figures


def procrustes(backend: Backend, layers: int, bootstrap: int, seed: int) -> Figures:
    """Return the angular Procrustes distance; see `cross_products.angle` and `cka`.

    The interval keeps the optimal rotation of all rows fixed, which is correct to first order.
    """
    no_rows = np.empty(0, np.int64)
    figures = Figures.unknown(layers, len(backend.rows))
    draws = Resamples.of(backend.rows, layers, bootstrap, seed) if bootstrap else None
    for i in range(layers):
        for part, without in (("value", no_rows), ("trimmed", backend.outliers[i])):
            if backend.product(i, i, without)[1] > 0:
                figures.fill((i, i), **{part: 0})
        if draws is not None:
            figures.fill((i, i), low=figures.value[i, i], high=figures.value[i, i])
    pairs = [pair for pair in pairs_of(layers) if pair[0] != pair[1]]
    for pair in track("procrustes", pairs, unit="pairs"):
        product, squares = backend.product(*pair, no_rows)
        if not squares > 0:  # the rest would be rounding error
            continue
        left, singular, right = np.linalg.svd(product, full_matrices=False)
        value = angle(singular.sum(), squares)
        figures.fill(pair, value=value)
        outliers = np.union1d(*(backend.outliers[i] for i in pair))
        if len(backend.rows) - len(outliers) >= FEWEST:
            product, squares = backend.product(*pair, outliers)
            singular = np.linalg.svd(product, compute_uv=False)
            figures.fill(pair, trimmed=angle(singular.sum(), squares))
        if draws is not None:
            x, y = (backend.centred_rows(i, draws.rows) for i in pair)
            along = ((x @ left) * (y @ right.T)).sum(axis=1)
            weights = np.vstack([np.ones(len(x)), draws.weights])
            spread = (weights @ np.square(x).sum(1)) * (weights @ np.square(y).sum(1))
            cosine = weights @ along / np.sqrt(np.where(spread > 0, spread, np.nan))
            angles = np.arccos(np.clip(cosine, 0, 1))
            ends = draws.interval(angles[1:], angles[0], np.asarray(value))
            low, high = np.clip(ends, 0, np.pi / 2)
            figures.fill(pair, low=low, high=high)
    return figures


def most_stimuli(layers: int) -> int:
    """Return the maximum number of rows for RSA; all RDMs take one gigabyte at most."""
    return min(_MOST_STIMULI, int(np.sqrt(_RANK_BYTES / 8 / layers)))


def rsa_bytes(layers: int, rows: int) -> int:
    """Return the memory of RSA in bytes: one matrix per layer and a few temporary ones."""
    return int(8 * min(rows, most_stimuli(layers)) ** 2 * (layers + 6))


def ranks_of(rows: Rows, chosen: Array) -> tuple[list[Array], list[int], Array]:
    """Return ranks of the RDMs of usable layers over usable rows, these layers, and these rows.

    A layer is usable if enough rows have a pattern (are not constant); a row, as an index into
    `chosen`, if it has one in all usable layers. Of too few rows there are no ranks.
    """
    layers = track("rsa", range(len(rows.features)), unit="layers")
    correlations = [gram(rows, layer, chosen, patterns=True) for layer in layers]
    finite = np.array([np.isfinite(np.diagonal(of)) for of in correlations])
    defined = np.flatnonzero(finite.sum(axis=1) >= FEWEST)
    good = np.flatnonzero(finite[defined].all(axis=0) & finite[defined].any(axis=0))
    ranks = []
    for i in defined if len(good) >= FEWEST else ():
        ranks.append(ranked(distances(correlations[i][np.ix_(good, good)])))
        correlations[i] = ranks[-1][:0]  # free the correlations
    return ranks, defined.tolist(), good


def rsa(backend: Backend, layers: int, bootstrap: int, seed: int) -> Figures:
    """Return RSA over at most 5,000 randomly drawn rows; see `rdm` and `cka`.

    Rows that are constant in a layer have no pattern and are left out.
    """
    rows = backend.rows
    chosen = rows.draw(most_stimuli(layers), seed)
    ranks, defined, good = ranks_of(rows, chosen)
    if not ranks:
        return Figures.unknown(layers, 0)
    figures = Figures.unknown(layers, len(good))
    numbers = chosen[good]
    draws = RankDraws(rows, numbers, ranks, bootstrap, seed) if bootstrap else None
    for i, j in track("rsa", pairs_of(len(defined)), unit="pairs"):
        pair = defined[i], defined[j]
        inliers = ~np.isin(numbers, np.union1d(*(backend.outliers[layer] for layer in pair)))
        spearman = WeightedSpearman(np.stack([np.ones(len(good)), inliers]))
        moments = [spearman.moments(ranks[k]) for k in (i, j)]
        correlation, trimmed = spearman.of(ranks[i], ranks[j], *moments)
        figures.fill(pair, value=correlation, trimmed=trimmed)
        if draws is not None:
            low, high = draws.interval_of(draws.drawn(i, j), correlation)
            figures.fill(pair, low=low, high=high)
    return figures


class RankDraws:
    """Bootstrap intervals of RSA: stimuli are resampled, their distances keep their ranks."""

    def __init__(
        self, rows: Rows, numbers: Array, ranks: Sequence[Array], count: int, seed: int
    ) -> None:
        """Resample the rows of the ranks, or a random subset of them."""
        chosen = np.arange(len(numbers))
        if len(numbers) > most_rows(len(ranks)):
            chance = np.random.default_rng([seed, 2])
            chosen = np.sort(chance.choice(len(numbers), most_rows(len(ranks)), replace=False))
        total = len(np.unique(numbers // rows.per_sample))
        whole = len(chosen) == len(numbers)
        self._draws = Resamples.from_rows(rows, numbers[chosen], total, count, seed, whole=whole)
        self._ranks = [of[np.ix_(chosen, chosen)] for of in ranks]
        once = np.ones((1, len(chosen)))
        self._spearman = WeightedSpearman(np.vstack([once, self._draws.weights]))
        self._moments = [self._spearman.moments(of) for of in self._ranks]

    def drawn(self, one: int, two: int) -> Array:
        """Return the correlation of two RDMs: first unweighted, then for every draw."""
        return self._spearman.of(
            self._ranks[one], self._ranks[two], self._moments[one], self._moments[two]
        )

    def interval_of(self, draws: Array, value: float) -> tuple[float, float]:
        """Return the ends of the interval of drawn values."""
        low, high = self._draws.interval(draws[1:], draws[0], np.asarray(value))
        return float(low), float(high)
