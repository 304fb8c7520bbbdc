"""Statistics of a batch per sample and channel, computed on its device."""

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
    """Return the statistics of a batch.

    Args:
        activation: floating point, `sample` first, on any device.
        channel_axis: index of the channel axis.
        beside: further values of the same channels (prefix tokens); only non-finite ones are
            counted.
    """
    if beside is not None:
        main, further = of_batch(activation, channel_axis), of_batch(beside, channel_axis)
        return replace(main, nonfinite=main.nonfinite + further.nonfinite)
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
        blocks = [_of_block(block) for block in torch.split(rows, max(1, _CACHED // size))]
    else:
        blocks = [
            on_device(block)
            for block in torch.split(values, max(1, _AT_ONCE // (size * values.shape[1])))
        ]
    columns = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return SampleStatistics(*(column.reshape(values.shape[:2]) for column in columns))


def _of_block(values: Tensor) -> tuple[Any, ...]:
    """Return the statistics of `(…, position)` values on a CPU, in the order of `SampleStatistics`.

    They come from sums and norms, the fastest reductions, and are computed again where these are
    inexact: for channels with a small spread about their mean, and for all with a non-finite value.
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
    """Return the same statistics, of the finite values only and in float64."""
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
    """Return the statistics of `(…, position)` values on a GPU, which has bandwidth to spare.

    Always exact: no step depends on a value, so only the final copy of all statistics to the host
    waits for the device.
    """
    figures = _exactly(values, torch.count_nonzero(values, dim=-1))
    together = torch.stack([figure.double() for figure in figures]).cpu()
    kinds = (figure.dtype for figure in figures)
    return tuple(figure.to(kind).numpy() for figure, kind in zip(together, kinds, strict=True))


def _nonzero(values: Tensor) -> Tensor:
    """Return the number of nonzero values of each channel (NaN is nonzero)."""
    # NumPy sums booleans into short integers ten times as fast as torch counts
    short = np.uint16 if values.shape[-1] < 2**16 else np.uint32
    counted = np.add.reduce(values.numpy() != 0, axis=-1, dtype=short)
    return torch.from_numpy(counted.astype(np.int64))
