"""Statistics of a batch, on the device that it is on: per sample and channel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.archive.statistics import SampleStatistics

_CACHED = 2**18  # values, 1 MiB
_CANCELLED = 8.0


def of_batch(
    activation: Tensor, channel_axis: int, beside: Tensor | None = None
) -> SampleStatistics:
    """Return the figures of a batch.

    Args:
        activation: floating point, `sample` first, on any device.
        channel_axis: index of the channel axis.
        beside: further values of the same channels (prefix tokens), of which only the non-finite
            ones are counted.
    """
    if beside is not None:
        found, more = of_batch(activation, channel_axis), of_batch(beside, channel_axis)
        return replace(found, nonfinite=found.nonfinite + more.nonfinite)
    values = (
        activation.movedim(channel_axis, 1).flatten(2)
        if activation.ndim > 2
        else activation.unsqueeze(-1)
    ).float()
    if values.device.type == "cpu":  # a few channels at a time: every pass but the first is cached
        rows = values.reshape(-1, values.shape[-1])
        step = max(1, _CACHED // max(1, values.shape[-1]))
        parts = [_of_part(part) for part in torch.split(rows, step)]
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        return SampleStatistics(*(column.reshape(values.shape[:2]) for column in columns))
    return SampleStatistics(*(array.cpu().numpy() for array in _of_part(values)))


def _of_part(values: Tensor) -> tuple[Any, ...]:
    """Return the figures of `(…, position)` values, in `SampleStatistics`' order.

    Sums and norms, the fastest reductions there are; what they cannot tell exactly is done again:
    channels whose spread is small against their mean, and everything where a value is not finite.
    """
    positions = values.shape[-1]
    mean = values.sum(-1) / positions
    square = torch.linalg.vector_norm(values, dim=-1).square() / positions
    low, high = values.amin(-1), values.amax(-1)
    zeros = positions - _nonzero(values)
    count = torch.full_like(zeros, positions)
    # A NaN or an infinity makes its channel's sums non-finite: one small check for all.
    if not bool((torch.isfinite(square) & torch.isfinite(mean)).all()):
        finite = torch.isfinite(values)
        count = finite.sum(-1)
        if values.device.type == "mps":  # has no float64
            values, finite = values.cpu(), finite.cpu()
            count, zeros = count.cpu(), zeros.cpu()
        wide = torch.where(finite, values, 0).double()
        exact = wide.sum(-1) / count
        m2 = torch.where(finite, (wide - exact.unsqueeze(-1)) ** 2, 0).sum(-1)
        low = torch.where(finite, values, torch.inf).amin(-1)
        high = torch.where(finite, values, -torch.inf).amax(-1)
        return count, exact.float(), m2, low, high, zeros, positions - count
    variance = square - mean.square()
    unsure = variance * _CANCELLED < square
    if bool(unsure.any()):
        exact = values[unsure]
        if values.device.type == "cpu":  # where torch adds in float64
            variance[unsure], mean[unsure] = torch.var(exact, -1, correction=0), exact.mean(-1)
        else:
            variance[unsure], mean[unsure] = about(exact, exact.mean(-1))
    return count, mean, variance * positions, low, high, zeros, positions - count


def about(values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance and mean of `(…, position)` values, given a rounded mean, `(…)`.

    Exact to float32's rounding however far from zero the values lie: the corrected two-pass
    algorithm (Chan, Golub & LeVeque 1983, eq. 1.7).
    """
    apart = values - mean.unsqueeze(-1)
    off = apart.mean(-1)
    return apart.square().mean(-1) - off.square(), mean + off


def _nonzero(values: Tensor) -> Tensor:
    """Return how many values of each channel are not zero (NaN is not)."""
    if values.device.type != "cpu":
        return torch.count_nonzero(values, dim=-1)
    # NumPy adds booleans into short integers ten times as fast as torch counts
    short = np.uint16 if values.shape[-1] < 2**16 else np.uint32
    counted = np.add.reduce(values.numpy() != 0, axis=-1, dtype=short)
    return torch.from_numpy(counted.astype(np.int64))
