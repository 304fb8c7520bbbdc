"""What float16 loses: the largest relative error of values stored in half of their bits."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 2**18  # values; 1 MiB, which a core's cache holds
_LARGEST = 2**-11 / (1 + 2**-11)  # of a float16: half a step, just above a power of two


class Rounding:
    """The largest |float16(x) - x| / |x| over the finite values x that float16 holds as normal
    numbers, of blocks that are added.

    Smaller ones (below 6.1e-5) lose more, down to all of their value. Blocks that cannot exceed
    what was found before them are only compared with it, which is several times as fast. Within 1 %
    of the largest error that there can be, 4.88e-4, the search ends, and this bound is returned.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._found = 0.0

    @property
    def largest(self) -> float:
        """The largest error, at most 1 % more than it is."""
        return _LARGEST if self._found >= 0.99 * _LARGEST else self._found

    def add(self, exact: Tensor, short: Tensor) -> None:
        """Look at values in float32, and as float16."""
        if self._found >= 0.99 * _LARGEST:
            return
        size = exact.abs()
        off = torch.sub(short.float(), exact).abs_()
        if float(torch.sub(off, size, alpha=self._found).amax()) <= 0:
            return  # false for NaN, which the division below leaves aside
        ratio = off.div_(size).masked_fill_(size < torch.finfo(torch.float16).smallest_normal, 0)
        self._found = max(self._found, float(ratio.nan_to_num_(0, 0, 0).amax()))


def largest_relative_error(exact: Tensor) -> float:
    """Return `Rounding.largest` of a whole tensor, block by block on a CPU."""
    rounding = Rounding()
    step = _BLOCK if exact.device.type == "cpu" else exact.numel()
    for block in torch.split(exact.reshape(-1), step):
        rounding.add(block, block.to(torch.float16))
    return rounding.largest
