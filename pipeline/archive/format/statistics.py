"""Statistics per channel: per batch on the device, merged over batches on the host.

Only finite values contribute; the others are counted separately. Batches yield statistics per
sample, which are stored too; the merged figures depend on the batch size by rounding only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from pipeline.common.arrays import Array

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Statistics:
    """Statistics per channel, `(channel,)`, or per sample and channel over positions.

    Attributes:
        count: number of finite values (int64).
        mean: of the finite values (floating point); without any, NaN per sample, else 0.
        m2: sum of squared deviations from that mean (floating point).
        min, max: of the finite values (floating point); +inf and -inf if no value is finite.
        zeros, nonfinite: number of exact zeros; number of NaN and infinite values (int64).
    """

    count: Array
    mean: Array
    m2: Array
    min: Array
    max: Array
    zeros: Array
    nonfinite: Array

    def figures(self, values: int) -> dict[str, Array]:
        """Return `schema.STATISTICS`; NaN for channels without finite values.

        `std` is the population standard deviation, `zero_fraction` the fraction of exact zeros
        among all `values` of a channel, 0..1.
        """
        empty = self.count == 0
        return {
            "count": self.count,
            "mean": np.where(empty, np.nan, self.mean),
            "std": np.sqrt(_ratio(self.m2, self.count)),
            "min": np.where(empty, np.nan, self.min),
            "max": np.where(empty, np.nan, self.max),
            "zero_fraction": _ratio(self.zeros, np.full_like(self.zeros, values)),
            "nonfinite_count": self.nonfinite,
        }


def channel_kinds(figures: Mapping[str, Array]) -> dict[str, Array]:
    """Return boolean masks `(channel,)` of what `Statistics.figures` tells of channels.

    Returns:
        `dead`: all values are zero; `constant`: all are the same other value; `always_on`: they
        differ, and all finite ones are positive.
    """
    low, high = figures["min"], figures["max"]
    dead = (figures["zero_fraction"] == 1) & (figures["count"] > 0)
    return {
        "dead": dead,
        "constant": (low == high) & (figures["nonfinite_count"] == 0) & ~dead,
        "always_on": (low > 0) & (low < high),
    }


def rounding_of_means(figures: Mapping[str, Array]) -> Array:
    """Return the standard deviation over samples that rounding may give a channel's float32 means,
    `(channel,)`: after an InstanceNorm, they differ by no more.
    """
    return np.asarray(_ROUNDING * np.hypot(figures["mean"], figures["std"]))


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Return the combined statistics of several parts."""
    return _combine({f.name: np.stack([getattr(part, f.name) for part in parts])
                     for f in fields(Statistics)})  # fmt: skip


def over_samples(batch: Statistics, keep: Array) -> Statistics:
    """Return the statistics per channel over the samples in the boolean mask `keep`."""
    return _combine({f.name: getattr(batch, f.name)[keep] for f in fields(Statistics)})


def _combine(parts: dict[str, Array]) -> Statistics:
    """Merge statistics over their first axis.

    Source: Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, equation
    2.1, extended to any number of parts.
    """
    count = parts["count"]
    means = np.where(count > 0, parts["mean"], 0).astype(np.float64)
    mean = _ratio((count * means).sum(axis=0), count.sum(axis=0), empty=0)
    within = np.where(count > 0, parts["m2"], 0).astype(np.float64).sum(axis=0)
    return Statistics(
        count=count.sum(axis=0),
        mean=mean,
        m2=within + (count * (means - mean) ** 2).sum(axis=0),
        min=parts["min"].min(axis=0, initial=np.inf).astype(np.float64),
        max=parts["max"].max(axis=0, initial=-np.inf).astype(np.float64),
        zeros=parts["zeros"].sum(axis=0),
        nonfinite=parts["nonfinite"].sum(axis=0),
    )


def _ratio(numerator: Array, denominator: Array, *, empty: float = np.nan) -> Array:
    out = np.full(np.shape(numerator), empty, np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
