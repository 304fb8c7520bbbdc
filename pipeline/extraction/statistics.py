"""Statistics of a batch per sample and channel, computed on its device."""

import functools
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.statistics import Statistics
from pipeline.common.arrays import Array
from pipeline.common.errors import one_line

log = logging.getLogger(__name__)
_CACHED = 2**18  # values, 1 MiB
_AT_ONCE = 2**24  # values on a GPU without Triton: temporary copies stay small
_CANCELLED = 8.0
# squares of float32 values beyond _HUGE overflow; those below 1 / _HUGE may vanish
_HUGE, _SHRINK = 2.0**50, 2.0**-80


def arguments(activation: Tensor, entry: LayerEntry) -> tuple[Tensor, int, Tensor | None]:
    """Return the arguments of `of_batch` and `on_gpu` for a layer's activation."""
    prefix = entry.prefix_positions
    if not prefix:
        return activation, entry.channel_axis, None
    axis = 1 + entry.axes.index("token")
    positions = activation.narrow(axis, prefix, activation.shape[axis] - prefix)
    return positions, entry.channel_axis, activation.narrow(axis, 0, prefix)


def of_batch(activation: Tensor, channel_axis: int, beside: Tensor | None = None) -> Statistics:
    """Return the statistics of a batch.

    Args:
        activation: floating point, `sample` first.
        channel_axis: index of the channel axis.
        beside: further values of the same channels (prefix tokens); only non-finite ones are
            counted.
    """
    if beside is not None:
        main, further = of_batch(activation, channel_axis), of_batch(beside, channel_axis)
        return replace(main, nonfinite=main.nonfinite + further.nonfinite)
    values = _by_channel(activation, channel_axis).float().cpu()
    rows = values.reshape(-1, values.shape[-1])
    # a few channels at a time: every pass but the first is cached
    blocks = [_of_block(block) for block in torch.split(rows, max(1, _CACHED // rows.shape[1]))]
    columns = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return Statistics(*(column.reshape(values.shape[:2]) for column in columns))


def on_gpu(activation: Tensor, channel_axis: int, beside: Tensor | None = None) -> Tensor:
    """Return the statistics, see `of_batch`, as one int32 tensor `(sample, 6, channel)`.

    Nothing waits for the device; `unpacked` reads a copy on the host.
    """
    out = _packed(_by_channel(activation, channel_axis), fused=triton_works(activation.device))
    if beside is not None:
        out[:, 5] += torch.isfinite(_by_channel(beside, channel_axis)).logical_not_().sum(-1)
    return out


def unpacked(packed: Array, positions: int) -> Statistics:
    """Return the statistics that `on_gpu` packed, of `positions` values per channel."""
    mean, std, low, high = packed.view(np.float32)[:, :4].swapaxes(0, 1)
    zeros, nonfinite = packed[:, 4:].swapaxes(0, 1).astype(np.int64)
    count = positions - nonfinite
    m2 = count * np.square(std, dtype=np.float64)
    return Statistics(count, mean, m2, low, high, zeros, nonfinite)


def _by_channel(activation: Tensor, channel_axis: int) -> Tensor:
    """Return a view as `(sample, channel, position)`; a copy if positions have no common stride."""
    return activation.unsqueeze(-1).movedim(channel_axis, 1).flatten(2)


def _packed(values: Tensor, *, fused: bool) -> Tensor:
    samples, channels, _ = values.shape
    out = torch.empty((samples, 6, channels), dtype=torch.int32, device=values.device)
    if fused:
        from pipeline.extraction.fused_passes import statistics

        statistics(values, out)
    else:
        _in_torch(values, out)
    return out


@functools.cache
def triton_works(device: torch.device) -> bool:
    """Return whether the fused passes work on a GPU; it is logged if they do not."""
    values = torch.linspace(-900.0, 1100.0, 960, device=device).reshape(3, 5, 64)
    values[0, 1, 2], values[1, 2], values[2, 3, :9] = torch.nan, torch.inf, 0
    try:
        from pipeline.extraction.fused_passes import rounding

        for stored in (torch.float16, torch.bfloat16):
            error, largest = rounding(values, stored).tolist()
            if not 0 < error <= torch.finfo(stored).eps / 2 or largest != 1100:
                raise ArithmeticError(f"a wrong rounding error, {error}")
        for example in (values, values.mT.contiguous().mT):
            one, other = (
                unpacked(_packed(example, fused=fused).cpu().numpy(), 64) for fused in (True, False)
            )
            for name, figure in vars(one).items():
                np.testing.assert_allclose(figure, getattr(other, name), rtol=1e-4, atol=1e-2)
    except Exception as error:  # noqa: BLE001 - without Triton, a compiler, a supported GPU …
        log.warning(
            "statistics: using slower passes in torch, because Triton does not work here (%s); it "
            "needs the package triton and a C compiler", one_line(error, limit=160),
        )  # fmt: skip
        return False
    return True


def _of_block(values: Tensor) -> tuple[Any, ...]:
    """Return the statistics of `(…, position)` values on a CPU, in the order of `Statistics`.

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
    nonzero = _nonzero(values)
    if bool(((torch.maximum(high, -low) < 1 / _HUGE) & (nonzero > 0)).any()):
        return _exactly(values, nonzero)
    zeros = positions - nonzero
    variance = square - mean.square()
    unsure = variance * _CANCELLED < square
    if bool(unsure.any()):
        exact = values[unsure]
        variance[unsure] = torch.var(exact, dim=-1, correction=0)
        mean[unsure] = exact.mean(-1)
    count = torch.full_like(zeros, positions)
    return count, mean, variance * positions, low, high, zeros, torch.zeros_like(zeros)


def _in_torch(values: Tensor, out: Tensor) -> None:
    """Write the figures of `fused_passes.statistics` in about ten passes."""
    step = max(1, _AT_ONCE // max(1, values[:1].numel()))
    for some, rows in zip(torch.split(values, step), torch.split(out, step), strict=True):
        nonzero = torch.count_nonzero(some, dim=-1)
        count, mean, m2, low, high, zeros, nonfinite = _exactly(some.float(), nonzero)
        std = (m2 / count.clamp(min=1)).sqrt().float()
        rows.view(torch.float32)[:, :4] = torch.stack([mean, std, low, high], dim=1)
        rows[:, 4:] = torch.stack([zeros, nonfinite], dim=1)


def _exactly(values: Tensor, nonzero: Tensor) -> tuple[Tensor, ...]:
    """Return the same statistics, of the finite values only, about each channel's own mean.

    Deviations from a float32 mean are nearly exact. What rounding left of the mean is their own
    mean; only figures per channel are float64.
    """
    positions = values.shape[-1]
    finite = torch.isfinite(values)
    count = finite.sum(-1)
    low = torch.where(finite, values, torch.inf).amin(-1)
    high = torch.where(finite, values, -torch.inf).amax(-1)
    magnitude = torch.maximum(high, -low)
    scale = torch.where(magnitude > _HUGE, _SHRINK, 1.0)
    scale[magnitude < 1 / _HUGE] = 1 / _SHRINK
    scaled = torch.where(finite, values, 0) * scale.unsqueeze(-1)
    divisor = count.clamp(min=1)
    centre = scaled.sum(-1) / divisor
    off = torch.where(finite, scaled - centre.unsqueeze(-1), 0)
    rest = off.sum(-1)
    m2 = (off.square().sum(-1) - rest.square() / divisor).clamp(min=0)
    m2 = m2.double() / scale.double().square()
    mean = ((centre.double() + rest / divisor) / scale).float()
    mean = torch.where(count > 0, mean, torch.nan)
    return count, mean, m2, low, high, positions - nonzero, positions - count


def _nonzero(values: Tensor) -> Tensor:
    """Return the number of nonzero values of each channel (NaN is nonzero)."""
    # NumPy sums booleans into short integers ten times as fast as torch counts
    short = np.uint16 if values.shape[-1] < 2**16 else np.uint32
    counted = np.add.reduce(values.numpy() != 0, axis=-1, dtype=short)
    return torch.from_numpy(counted.astype(np.int64))
