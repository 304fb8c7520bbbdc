"""Statistics per channel, of one batch on the device and merged over batches on the host.

Only finite values count; the others are counted apart. A batch gives per-sample figures first, so
that they can be kept (which samples drive a channel?) and the merged figures do not depend on the
batch size beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class SampleStatistics:
    """Figures per sample and channel, each `(sample, channel)`.

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


def of_batch(activation: Tensor, channel_axis: int) -> SampleStatistics:
    """Return the figures of a batch.

    Args:
        activation: floating point, `sample` first, on any device.
        channel_axis: index of the channel axis.
    """
    import torch

    values = (
        activation.movedim(channel_axis, 1).flatten(2)
        if activation.ndim > 2
        else activation.unsqueeze(-1)
    )
    values = values.float()
    positions = values.shape[-1]
    variance, mean = torch.var_mean(values, dim=-1, correction=0)
    low, high = torch.aminmax(values, dim=-1)
    zeros = positions - torch.count_nonzero(values, dim=-1)
    count = torch.full_like(zeros, positions)
    m2 = variance * positions
    # A single NaN or infinity makes its channel's extremes or variance non-finite: one small check
    # for all.
    if not bool((torch.isfinite(m2) & torch.isfinite(low) & torch.isfinite(high)).all()):
        finite = torch.isfinite(values)
        count = finite.sum(-1)
        wide = torch.where(finite, values, 0).double()
        exact = wide.sum(-1) / count
        mean = exact.float()
        m2 = torch.where(finite, (wide - exact.unsqueeze(-1)) ** 2, 0).sum(-1)
        low = torch.where(finite, values, torch.inf).amin(-1)
        high = torch.where(finite, values, -torch.inf).amax(-1)
    arrays = (count, mean, m2, low, high, zeros, positions - count)
    return SampleStatistics(*(array.cpu().numpy() for array in arrays))


@dataclass(frozen=True)
class ChannelStatistics:
    """Figures per channel over any number of samples, each `(channel,)`; names as in
    `SampleStatistics`.

    `count`, `zeros` and `nonfinite` are int64, the others float64; mean is 0 where nothing is
    finite.
    """

    count: Array
    mean: Array
    m2: Array
    min: Array
    max: Array
    zeros: Array
    nonfinite: Array

    @property
    def std(self) -> Array:
        """Population standard deviation; NaN where nothing is finite."""
        return np.sqrt(_ratio(self.m2, self.count))

    @property
    def zero_fraction(self) -> Array:
        """Share of exact zeros among all values, 0..1."""
        return _ratio(self.zeros, self.count + self.nonfinite)

    @classmethod
    def empty(cls, channels: int) -> ChannelStatistics:
        """Return the figures of no samples at all."""
        whole = np.zeros(channels, np.int64)
        real = np.zeros(channels, np.float64)
        return cls(whole, real, real, real + np.inf, real - np.inf, whole, whole)


def merge(parts: Sequence[ChannelStatistics]) -> ChannelStatistics:
    """Return the figures of all parts together.

    Source: Chan, Golub & LeVeque (1979), pairwise update of mean and sum of squared deviations,
    written for any number of parts.
    """
    stacked = {
        field.name: np.stack([getattr(part, field.name) for part in parts])
        for field in fields(parts[0])
    }
    return _combine(stacked)


def over_samples(batch: SampleStatistics, keep: Array) -> ChannelStatistics:
    """Return the figures per channel of the samples that the boolean array `keep` marks."""
    return _combine({field.name: getattr(batch, field.name)[keep] for field in fields(batch)})


def _combine(figures: dict[str, Array]) -> ChannelStatistics:
    count = figures["count"]
    total = count.sum(axis=0)
    mean = np.where(count > 0, figures["mean"], 0).astype(np.float64)
    mean_of_all = _ratio((mean * count).sum(axis=0), total, empty=0.0)
    between = (count * (mean - mean_of_all) ** 2).sum(axis=0)
    within = np.where(count > 0, figures["m2"], 0).sum(axis=0, dtype=np.float64)
    return ChannelStatistics(
        count=total,
        mean=mean_of_all,
        m2=within + between,
        min=figures["min"].min(axis=0, initial=np.inf).astype(np.float64),
        max=figures["max"].max(axis=0, initial=-np.inf).astype(np.float64),
        zeros=figures["zeros"].sum(axis=0),
        nonfinite=figures["nonfinite"].sum(axis=0),
    )


def _ratio(above: Array, below: Array, *, empty: float = np.nan) -> Array:
    out = np.full(np.shape(above), empty, np.float64)
    return np.divide(above, below, out=out, where=below > 0)
