"""Subsets: the class token, random positions, some channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, ClassVar

from pipeline.archive.format.layer_entry import ALL_POSITIONS
from pipeline.archive.format.position_sampling import draw
from pipeline.capture.axes import TOKENS, VECTOR, Axes
from pipeline.common.configured import Channels, Natural, Positive, configured
from pipeline.extraction.reductions.base import Reduction

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@configured
class ClsToken(Reduction):
    """Only the class token, the first prefix token; vectors are unchanged.

    Layers without a class token are left out.
    """

    def axes(self, axes: Axes) -> Axes:
        return Axes(names=VECTOR)

    def positions(self, axes: Axes) -> str:
        return "class token" if "token" in axes.names else ALL_POSITIONS

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        if axes.names == VECTOR:
            return activation
        return activation.select(axes.index("token"), 0)

    def misfit(self, axes: Axes) -> str:
        has_one = axes.names == VECTOR or ("token" in axes.names and axes.class_token)
        return "" if has_one else "no class token is known"


@configured
class RandomPositions(Reduction):
    """`count` random positions of each sample, as tokens; vectors are unchanged.

    Linear probes and sparse autoencoders train on these without the rest of the maps. The archive
    records the positions (`layer.position`).

    Attributes:
        count: number of positions; all of them if a layer has fewer.
        seed: seed of the draw; each sample has its own stream.
    """

    type_key: ClassVar[str] = "positions"

    count: Positive = 8
    seed: Natural = 0

    def axes(self, axes: Axes) -> Axes:
        return axes if axes.names == VECTOR else Axes(names=TOKENS)

    def positions(self, axes: Axes) -> str:
        return ALL_POSITIONS

    def drawn(self, axes: Axes, shape: Sequence[int]) -> tuple[int, int] | None:
        if axes.names == VECTOR:
            return None
        return self.seed, math.prod(shape) // shape[axes.channel - 1] - axes.prefix_positions

    def for_rows(self, start: int) -> Callable[[Tensor, Axes], Tensor]:
        return partial(self, start=start)

    def __call__(self, activation: Tensor, axes: Axes, start: int = 0) -> Tensor:
        drawn_shape = self.drawn(axes, activation.shape[1:])
        if drawn_shape is None:
            return activation
        rows = range(start, start + len(activation))
        seed, total = drawn_shape
        positions = _drawn(seed, rows, total, min(self.count, total), activation.device)
        vectors = axes.positions(activation).movedim(axes.channel, 1).flatten(2)
        index = positions[:, None].expand(-1, vectors.shape[1], -1)
        return vectors.gather(2, index).transpose(1, 2)


@configured
class ChannelSubset(Reduction):
    """Only these channels, in this order."""

    type_key: ClassVar[str] = "channels"

    channels: Channels

    def __post_init__(self) -> None:
        if not self.channels or len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels must be distinct and not empty, got {list(self.channels)}")

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        count = activation.shape[axes.channel]
        if max(self.channels) >= count:
            raise ValueError(
                f"reduction: channel {max(self.channels)} does not exist in a layer with {count}"
            )
        return activation.index_select(axes.channel, _index(self.channels, activation.device))


# Copying an index would wait for all earlier work of a GPU; layers of equal size share the draw.
@lru_cache(maxsize=16)
def _drawn(seed: int, rows: range, of: int, count: int, device: torch.device) -> Tensor:
    import torch

    positions = torch.from_numpy(draw([seed], rows, of, count))
    return positions.to(device, non_blocking=device.type == "cuda")


@lru_cache(maxsize=16)
def _index(channels: tuple[int, ...], device: torch.device) -> Tensor:
    import torch

    return torch.tensor(channels, device=device)
