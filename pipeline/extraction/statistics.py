"""Statistics of a batch, on the device that it is on: per sample and channel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.archive.format.statistics import SampleStatistics
from pipeline.common.arrays import Array

_CACHED = 2**18  # values, 1 MiB
_AT_ONCE = 2**24  # values on a GPU: the copies in float64 stay small beside the activations
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
    if values.device.type == "mps":  # has no float64
        values = values.cpu()
    size = max(1, values.shape[-1])
    if values.device.type == "cpu":  # a few channels at a time: every pass but the first is cached
        rows = values.reshape(-1, values.shape[-1])
        parts = [_of_part(part) for part in torch.split(rows, max(1, _CACHED // size))]
    else:
        parts = [
            on_device(part)
            for part in torch.split(values, max(1, _AT_ONCE // (size * values.shape[1])))
        ]
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return SampleStatistics(*(column.reshape(values.shape[:2]) for column in columns))


def _of_part(values: Tensor) -> tuple[Any, ...]:
    """Return the figures of `(…, position)` values on a CPU, in `SampleStatistics`' order.

    Sums and norms, the fastest reductions there are; what they cannot tell exactly is done again:
    channels whose spread is small against their mean, and everything where a value is not finite.
    """
    positions = values.shape[-1]
    mean = values.sum(-1) / positions
    square = torch.linalg.vector_norm(values, dim=-1).square() / positions
    # A NaN or an infinity makes its channel's sums non-finite: one small check for all.
    if not bool((torch.isfinite(square) & torch.isfinite(mean)).all()):
        return _exactly(values, _nonzero(values))
    low, high = values.amin(-1), values.amax(-1)
    zeros = positions - _nonzero(values)
    variance = square - mean.square()
    unsure = variance * _CANCELLED < square
    if bool(unsure.any()):
        exact = values[unsure]
        variance[unsure] = torch.var(exact, dim=-1, correction=0)
        mean[unsure] = exact.mean(-1)
    count = torch.full_like(zeros, positions)
    return count, mean, variance * positions, low, high, zeros, torch.zeros_like(zeros)


def _exactly(values: Tensor, nonzero: Tensor) -> tuple[Tensor, ...]:
    """Return the same, in float64 and of the finite values alone."""
    positions = values.shape[-1]
    finite = torch.isfinite(values)
    count = finite.sum(-1)
    wide = torch.where(finite, values, 0).double()
    mean = wide.sum(-1) / count
    m2 = torch.where(finite, (wide - mean.unsqueeze(-1)) ** 2, 0).sum(-1)
    low = torch.where(finite, values, torch.inf).amin(-1)
    high = torch.where(finite, values, -torch.inf).amax(-1)
    return count, mean.float(), m2, low, high, positions - nonzero, positions - count


def on_device(values: Tensor) -> tuple[Array, ...]:
    """Return the figures of `(…, position)` values on a GPU, which has bandwidth to spare.

    Always exactly: no step depends on a value, so nothing waits for the device but the end, when
    all figures come to the host together.
    """
    figures = _exactly(values, torch.count_nonzero(values, dim=-1))
    together = torch.stack([figure.double() for figure in figures]).cpu()
    kinds = (figure.dtype for figure in figures)
    return tuple(one.to(kind).numpy() for one, kind in zip(together, kinds, strict=True))


def _nonzero(values: Tensor) -> Tensor:
    """Return how many values of each channel are not zero (NaN is not)."""
    # NumPy adds booleans into short integers ten times as fast as torch counts
    short = np.uint16 if values.shape[-1] < 2**16 else np.uint32
    counted = np.add.reduce(values.numpy() != 0, axis=-1, dtype=short)
    return torch.from_numpy(counted.astype(np.int64))
