"""Rounding: the largest relative error of storing values in a shorter type.

Subnormal values (float16: below 6.1e-5) are left out: they lose more, up to all of their value.
Within 1 % of the largest possible error (float16: 4.88e-4, bfloat16: 3.89e-3) it is reported as
this bound.
"""

import torch
from torch import Tensor

from pipeline.extraction.statistics import triton_works

_BLOCK = 2**18  # values; 1 MiB, which a core's cache holds
_NEAR = 0.99


def largest_relative_error(exact: Tensor, stored: torch.dtype) -> float:
    """Return the largest relative error of casting to `stored`, over finite, normal values.

    Blocks that cannot exceed the current maximum are only compared with it, which is several times
    as fast. The search ends near the bound.
    """
    worst = 0.0
    for block in torch.split(exact.reshape(-1), _BLOCK):
        if worst >= _NEAR * _bound(stored):
            break
        off = torch.sub(block.to(stored).float(), block).abs_()
        if float(torch.sub(off, block.abs(), alpha=worst).amax()) <= 0:
            continue  # false for NaN, which the division handles
        worst = max(worst, float(_relative(off, block, stored)))
    return at_bound(worst, stored)


def on_gpu(exact: Tensor, stored: torch.dtype) -> Tensor:
    """Return the same, for `at_bound`, and the largest finite magnitude, without waiting."""
    if triton_works(exact.device):
        from pipeline.extraction import fused_passes

        return fused_passes.rounding(exact.contiguous(), stored)
    off = torch.sub(exact.to(stored).float(), exact).abs_()
    return torch.stack([_relative(off, exact, stored), exact.nan_to_num(0, 0, 0).abs().amax()])


def at_bound(worst: float, stored: torch.dtype) -> float:
    """Return an error, or the largest possible one if it is near."""
    bound = _bound(stored)
    return worst if worst < _NEAR * bound else bound


def _relative(off: Tensor, exact: Tensor, stored: torch.dtype) -> Tensor:
    """Return the largest ratio of errors `off`, which are overwritten, to magnitudes."""
    size = exact.abs()
    ratio = off.div_(size).masked_fill_(size < torch.finfo(stored).smallest_normal, 0)
    return ratio.nan_to_num_(0, 0, 0).amax()


def _bound(stored: torch.dtype) -> float:
    half_step = torch.finfo(stored).eps / 2  # between numbers above a power of two
    return half_step / (1 + half_step)
