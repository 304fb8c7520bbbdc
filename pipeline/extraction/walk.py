"""One walk over what a layer returned: figures, copy and cast of a block while a cache holds it.

Memory is what large layers wait for: each value is read from it once, and written once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.archive.manifest import ALL_POSITIONS
from pipeline.archive.statistics import SampleStatistics
from pipeline.extraction.rounding import Rounding
from pipeline.extraction.statistics import CACHED, of_part, of_parts
from pipeline.layers.axes import Axes


@dataclass(frozen=True)
class Walked:
    """What a walk found.

    Attributes:
        figures: per sample and channel.
        rounding: the largest relative error of the copy, None where it is exact.
    """

    figures: SampleStatistics
    rounding: float | None


def can_walk(activation: Tensor, axes: Axes, positions: str) -> bool:
    """Tell whether an activation lies so that blocks of it are whole channels.

    On a CPU, float32, channels first, every position counted.
    """
    return (
        activation.device.type == "cpu"
        and activation.dtype is torch.float32
        and activation.ndim > 2
        and axes.channel == 1
        and activation.is_contiguous()
        and positions == ALL_POSITIONS
    )


def walk(activation: Tensor, out: Tensor) -> Walked:
    """Copy an activation into `out`, of its shape, float32 or float16, and return its figures."""
    positions = activation[0, 0].numel()
    step = max(1, CACHED // max(1, positions))
    blocks = torch.split(activation.reshape(-1, positions), step)
    places = torch.split(out.view(-1, positions), step)
    rounding = Rounding() if out.dtype is torch.float16 else None
    parts = []
    for block, place in zip(blocks, places, strict=True):
        parts.append(of_part(block))
        place.copy_(block)
        if rounding:
            rounding.add(block, place)
    shape = activation.shape[:2]
    return Walked(of_parts(parts, shape), rounding.largest if rounding else None)
