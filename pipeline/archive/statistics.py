"""Statistics per channel, of one batch on the device and merged over batches on the host.

Only finite values count; the others are counted apart. A batch gives per-sample figures first, so
that they can be kept (which samples drive a channel?) and the merged figures do not depend on the
batch size beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from pipeline.archive import summation
from pipeline.foundation.arrays import Array


@dataclass(frozen=True)
class SampleStatistics:
    """Figures per sample and channel, each `(sample, channel)`, over positions.

    Attributes:
        count: finite values (int64).
        mean: of the finite values, NaN where there are none (float32).
        m2: sum of squared deviations from that mean (floating point).
        min, max: of the finite values, +inf and -inf where there are none (float32).
        zeros, nonfinite: how many values are exactly zero; NaN or infinite (int64).
    """

    count: Array
    mean: Array
    m2: Array
    min: Array
    max: Array
    zeros: Array
    nonfinite: Array


@dataclass(frozen=True)
class ChannelStatistics:
    """Figures per channel over any number of samples, each `(channel,)`; merging parts of a dataset
    gives the same figures however it was divided.

    `count`, `zeros` and `nonfinite` are int64, the others float64.

    Attributes:
        count: finite values.
        sum, sum_low: their sum, as a pair (see `summation`).
        squares, squares_low: the sum of their squares, as a pair.
        min, max: +inf and -inf where nothing is finite.
        zeros, nonfinite: how many values are exactly zero; NaN or infinite.
    """

    count: Array
    sum: Array
    sum_low: Array
    squares: Array
    squares_low: Array
    min: Array
    max: Array
    zeros: Array
    nonfinite: Array

    @property
    def mean(self) -> Array:
        """Mean of the finite values; NaN where there are none."""
        return _ratio(self.sum, self.count)

    @property
    def std(self) -> Array:
        """Population standard deviation; NaN where nothing is finite."""
        count = self.count.astype(np.float64)
        high, error = summation.two_product(count, self.squares)
        scaled = summation.two_sum(high, error + count * self.squares_low)
        square, error = summation.two_product(self.sum, self.sum)
        below = (-square, -(error + 2 * self.sum * self.sum_low))
        return _ratio(np.sqrt(np.maximum(summation.add(scaled, below)[0], 0)), self.count)

    @property
    def zero_fraction(self) -> Array:
        """Share of exact zeros among all values, 0..1."""
        return _ratio(self.zeros, self.count + self.nonfinite)

    @classmethod
    def empty(cls, channels: int) -> ChannelStatistics:
        """Return the figures of no samples at all."""
        whole = np.zeros(channels, np.int64)
        real = np.zeros(channels, np.float64)
        return cls(whole, real, real, real, real, real + np.inf, real - np.inf, whole, whole)


def merge(parts: Sequence[ChannelStatistics]) -> ChannelStatistics:
    """Return the figures of all parts together."""
    stacked = {
        field.name: np.stack([getattr(part, field.name) for part in parts])
        for field in fields(ChannelStatistics)
    }
    return _combine(stacked)


def over_samples(batch: SampleStatistics, keep: Array) -> ChannelStatistics:
    """Return the figures per channel of the samples that the boolean array `keep` marks."""
    count = batch.count[keep]
    some = count > 0
    # exact: a float32 mean has 24 bits, a count fewer than 29; the square is rounded once
    mean = np.where(some, batch.mean[keep], 0).astype(np.float64)
    high, low = summation.two_product(mean * mean, count.astype(np.float64))
    squares = summation.two_sum(high, np.where(some, batch.m2[keep], 0).astype(np.float64))
    return _combine(
        {
            "count": count,
            "sum": mean * count,
            "sum_low": np.zeros_like(mean),
            "squares": squares[0],
            "squares_low": squares[1] + low,
            "min": batch.min[keep],
            "max": batch.max[keep],
            "zeros": batch.zeros[keep],
            "nonfinite": batch.nonfinite[keep],
        }
    )


def _combine(figures: dict[str, Array]) -> ChannelStatistics:
    sums = summation.total(figures["sum"], figures["sum_low"])
    squares = summation.total(figures["squares"], figures["squares_low"])
    return ChannelStatistics(
        count=figures["count"].sum(axis=0),
        sum=sums[0],
        sum_low=sums[1],
        squares=squares[0],
        squares_low=squares[1],
        min=figures["min"].min(axis=0, initial=np.inf).astype(np.float64),
        max=figures["max"].max(axis=0, initial=-np.inf).astype(np.float64),
        zeros=figures["zeros"].sum(axis=0),
        nonfinite=figures["nonfinite"].sum(axis=0),
    )


def _ratio(above: Array, below: Array) -> Array:
    out = np.full(np.shape(above), np.nan, np.float64)
    return np.divide(above, below, out=out, where=below > 0)
