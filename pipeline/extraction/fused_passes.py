"""Fused passes: statistics and rounding errors of an activation on a GPU, each read once.

Triton kernels without atomics, so that the same input always gives the same bits. Import this
module only if Triton is installed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def statistics_kernel(  # type: ignore[no-untyped-def]
    values, figures, counts, channels, positions, blocks,
    sample_stride, channel_stride, position_stride,
    CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Write mean, standard deviation, minimum and maximum to `figures`, zeros and non-finite
    values to `counts`: the same memory, `(sample, 6, channel)`.

    Each program takes some channels of one sample, block by block of positions. Within a block it
    computes in float32 about the block's own mean; blocks are merged in float64 (Chan, Golub and
    LeVeque 1983, equation 2.1).
    """
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    rows = values + sample * sample_stride + channel.to(tl.int64) * channel_stride
    count = tl.full([CHANNELS], 0, tl.int32)
    zeros = tl.full([CHANNELS], 0, tl.int32)
    mean = tl.full([CHANNELS], 0, tl.float64)
    m2 = tl.full([CHANNELS], 0, tl.float64)
    low = tl.full([CHANNELS], float("inf"), tl.float32)
    high = tl.full([CHANNELS], float("-inf"), tl.float32)
    for start in range(0, positions, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        inside = exists[:, None] & (position < positions)[None, :]
        offsets = (position.to(tl.int64) * position_stride)[None, :]
        value = tl.load(rows[:, None] + offsets, mask=inside, other=0.0).to(tl.float32)
        finite = inside & (tl.abs(value) < float("inf"))
        smallest = tl.min(tl.where(finite, value, float("inf")), 1)
        largest = tl.max(tl.where(finite, value, float("-inf")), 1)
        zeros += tl.sum((inside & (value == 0)).to(tl.int32), 1)
        n = tl.sum(finite.to(tl.int32), 1)
        # Other squares would overflow or vanish; powers of two scale exactly (2**50, 2**80).
        magnitude = tl.maximum(largest, -smallest)
        scale = tl.where(magnitude > 1125899906842624.0, 8.271806125530277e-25, 1.0)
        scale = tl.where(magnitude < 8.881784197001252e-16, 1.2089258196146292e24, scale)
        scaled = tl.where(finite, value, 0.0) * scale[:, None]
        inverse = tl.div_rn(1.0, tl.maximum(n, 1).to(tl.float32))
        centre = tl.sum(scaled, 1) * inverse
        off = tl.where(finite, scaled - centre[:, None], 0.0)
        rest = tl.sum(off, 1)  # what rounding left of the mean
        within = tl.maximum(tl.sum(off * off, 1) - rest * (rest * inverse), 0.0)
        total = count + n
        weight = tl.div_rn(n.to(tl.float32), tl.maximum(total, 1).to(tl.float32))
        unscale = 1.0 / scale.to(tl.float64)
        delta = (centre.to(tl.float64) + (rest * inverse).to(tl.float64)) * unscale - mean
        between = delta * delta * (count.to(tl.float32) * weight).to(tl.float64)
        m2 += within.to(tl.float64) * unscale * unscale + between
        mean += delta * weight.to(tl.float64)
        count = total
        low = tl.minimum(low, smallest)
        high = tl.maximum(high, largest)
    std = tl.sqrt(m2 / tl.maximum(count, 1).to(tl.float64))
    mean = tl.where(count > 0, mean, float("nan"))
    out = sample * 6 * channels + channel
    tl.store(figures + out, mean.to(tl.float32), mask=exists)
    tl.store(figures + out + channels, std.to(tl.float32), mask=exists)
    tl.store(figures + out + 2 * channels, low, mask=exists)
    tl.store(figures + out + 3 * channels, high, mask=exists)
    tl.store(counts + out + 4 * channels, zeros, mask=exists)
    tl.store(counts + out + 5 * channels, positions - count, mask=exists)


def statistics(values: Tensor, out: Tensor) -> None:
    """Write the statistics of `(sample, channel, position)` values of any strides to `out`.

    Args:
        values: floating point, on the GPU.
        out: int32 `(sample, 6, channel)`, contiguous; the first four rows are float32 bits.
    """
    samples, channels, positions = values.shape
    if not out.numel():
        return
    width, length = 64, 32  # channels and positions at a time, when channels are contiguous
    if positions > 1 and values.stride(1) != 1:
        length = min(2048, max(64, triton.next_power_of_2(positions)))
        width = max(2, min(16, 2048 // length))
    blocks = triton.cdiv(channels, width)
    with torch.cuda.device_of(values):  # type: ignore[no-untyped-call] # Triton launches on the current device
        statistics_kernel[(samples * blocks,)](
            values, out.view(torch.float32), out, channels, positions, blocks, *values.stride(),
            CHANNELS=width, POSITIONS=length, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def rounding_kernel(  # type: ignore[no-untyped-def]
    values, out, total, smallest, BFLOAT16: tl.constexpr, SIZE: tl.constexpr
):
    """Write the largest relative error and the largest finite magnitude of a block to `out`."""
    block = tl.program_id(0).to(tl.int64)
    offsets = block * SIZE + tl.arange(0, SIZE)
    value = tl.load(values + offsets, mask=offsets < total, other=0.0).to(tl.float32)
    value = tl.where(tl.abs(value) < float("inf"), value, 0.0)
    size = tl.abs(value)
    if BFLOAT16:  # to nearest, ties to even, as on every GPU (Triton's interpreter truncates)
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 32767 + ((bits >> 16) & 1)) & -65536
        short = bits.to(tl.float32, bitcast=True)
    else:
        short = value.to(tl.float16).to(tl.float32)
    counted = (size >= smallest) & (tl.abs(short) < float("inf"))
    off = tl.abs(tl.where(counted, short, value) - value)
    tl.store(out + 2 * block, tl.max(tl.div_rn(off, tl.maximum(size, smallest)), 0))
    tl.store(out + 2 * block + 1, tl.max(size, 0))


def rounding(exact: Tensor, stored: torch.dtype) -> Tensor:
    """Return the largest relative error of casting float32 values to float16 or bfloat16, and the
    largest finite magnitude.
    """
    size = 4096
    blocks = triton.cdiv(exact.numel(), size)
    out = torch.empty((blocks, 2), dtype=torch.float32, device=exact.device)
    with torch.cuda.device_of(exact):  # type: ignore[no-untyped-call]
        rounding_kernel[(blocks,)](
            exact, out, exact.numel(), torch.finfo(stored).smallest_normal,
            BFLOAT16=stored is torch.bfloat16, SIZE=size, enable_fp_fusion=False,
        )  # fmt: skip
    return out.amax(0)
