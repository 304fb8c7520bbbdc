"""Reductions: make activations smaller on their device, before they are copied to the host.

Positions are the pixels of maps and the tokens of the grid; prefix tokens (class, register) are not
positions.
"""

from __future__ import annotations

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pipeline.archive.format.manifest import ALL_POSITIONS
from pipeline.archive.format.position_sampling import draw
from pipeline.capture.axes import CHANNELS_FIRST, TOKENS, VECTOR, Axes
from pipeline.common.configured import Channels, Natural, Positive, configured, type_key_of
from pipeline.common.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from torch import Tensor

_POSITIONS = ("height", "width", "token", "query", "key")


@configured
class Reduction(ABC):
    """Base class of reductions: a map from an activation to a smaller one."""

    type_key: ClassVar[str] = ""
    """Name in files; empty means the class name in snake case."""

    def axes(self, axes: Axes) -> Axes:
        """Return the axes of the reduced activation for an activation with `axes`."""
        return axes

    @abstractmethod
    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        """Return the reduced activation.

        Args:
            activation: `sample` followed by `axes.names`, on any device.
            axes: the axes after `sample`.

        Raises:
            ValueError: when the reduction does not fit the activation.
        """

    def of_layer(self, layer: str) -> Reduction:
        """Return the reduction of one layer."""
        return self

    def for_rows(self, start: int) -> Callable[[Tensor, Axes], Tensor]:
        """Return the reduction for samples that are the rows from `start` on."""
        return self

    def drawn(self, axes: Axes, shape: Sequence[int]) -> tuple[int, int] | None:
        """Return the seed and the number of positions to draw from; None without a draw."""
        return None

    def positions(self, axes: Axes) -> str:
        """Return a text for the positions that reductions and statistics are taken over."""
        count = axes.prefix_tokens
        scope = "grid" if axes.grid else "tokens"
        return (
            f"{scope}, without {count} prefix token{'s' * (count > 1)}" if count else ALL_POSITIONS
        )

    def misfit(self, axes: Axes) -> str:
        """Return why layers with `axes` are left out; empty if they are kept."""
        return ""

    def check(self, layers: Sequence[str]) -> None:  # noqa: B027 - most reductions fit all layers
        """Raise ConfigError if the reduction does not fit the selected layers.

        Raises:
            ConfigError: naming the option.
        """


@configured
class NoReduction(Reduction):
    """The unchanged activation."""

    type_key: ClassVar[str] = "none"

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        return activation


@configured
class SpatialMean(Reduction):
    """Mean over all positions of each channel, summed in float32 at least."""

    def axes(self, axes: Axes) -> Axes:
        return Axes(names=VECTOR)

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        dims = tuple(1 + i for i, name in enumerate(axes.names) if name in _POSITIONS)
        return self._over(axes.positions(activation), dims) if dims else activation

    def _over(self, values: Tensor, dims: tuple[int, ...]) -> Tensor:
        return values.float().mean(dim=dims)


@configured
class SpatialMax(SpatialMean):
    """Maximum over all positions of each channel."""

    def _over(self, values: Tensor, dims: tuple[int, ...]) -> Tensor:
        return values.amax(dim=dims)


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
        has_one = axes.names == VECTOR or ("token" in axes.names and axes.prefix_tokens)
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
        return self.seed, math.prod(shape) // shape[axes.channel - 1] - axes.prefix_tokens

    def for_rows(self, start: int) -> Callable[[Tensor, Axes], Tensor]:
        return partial(self._taken, start)

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        return self._taken(0, activation, axes)

    def _taken(self, start: int, activation: Tensor, axes: Axes) -> Tensor:
        import torch

        drawn = self.drawn(axes, activation.shape[1:])
        if drawn is None:
            return activation
        rows = range(start, start + len(activation))
        _, total = drawn
        positions = torch.from_numpy(draw([self.seed], rows, total, min(self.count, total)))
        vectors = axes.positions(activation).movedim(axes.channel, 1).flatten(2)
        index = positions.to(activation.device)[:, None].expand(-1, vectors.shape[1], -1)
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
        return activation[(slice(None),) * axes.channel + (list(self.channels),)]


@configured
class AverageGrid(Reduction):
    """Maps averaged to `height` × `width` cells, channels first.

    Vectors and tokens without a grid are unchanged. Cells are those of
    `torch.nn.functional.adaptive_avg_pool2d`.
    """

    height: Positive = 7
    width: Positive = 7

    def axes(self, axes: Axes) -> Axes:
        return Axes(names=CHANNELS_FIRST) if "height" in axes.names or axes.grid else axes

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        from torch.nn import functional as F

        if self.axes(axes) is axes:
            return activation
        values = axes.positions(activation).movedim(axes.index("channel"), 1)
        if axes.grid:
            values = values.reshape(*values.shape[:2], *axes.grid)
        return F.adaptive_avg_pool2d(values.float(), (self.height, self.width))


@configured
class PerLayer(Reduction):
    """A reduction for each layer.

    Attributes:
        layers: name or glob → `none`, `spatial_mean`, `spatial_max`, `cls_token`, `grid:7x7` or
            `channels:0,5,9`, `positions:8`; the first match applies.
        default: reduction of all other layers.
    """

    layers: dict[str, str] = field(default_factory=dict)
    default: str = "none"

    def __post_init__(self) -> None:
        for text in (*self.layers.values(), self.default):
            parse(text)

    def of_layer(self, layer: str) -> Reduction:
        for pattern, text in self.layers.items():
            if _covers(pattern, layer):
                return parse(text)
        return parse(self.default)

    def check(self, layers: Sequence[str]) -> None:
        for pattern in self.layers:
            if not any(_covers(pattern, layer) for layer in layers):
                raise ConfigError(
                    f"reduction.layers: {pattern!r} matches none of the selected layers; "
                    f"{suggestion(pattern, layers)}"
                )

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        raise AssertionError("per-layer reductions are resolved by of_layer")


def _covers(pattern: str, layer: str) -> bool:
    literal = pattern.replace("[", "[[]")  # keys of elements rather than sets of characters
    return any(fnmatch.fnmatchcase(layer, text) for text in (literal, pattern))


def parse(text: str) -> Reduction:
    """Return the reduction for its short text form.

    >>> parse("grid:4x5")
    AverageGrid(height=4, width=5)
    """
    name, _, rest = text.partition(":")
    simple = {type_key_of(kind): kind for kind in (NoReduction, SpatialMean, SpatialMax, ClsToken)}
    try:
        if name in simple and not rest:
            return simple[name]()
        if name == "grid":
            height, width = rest.split("x")
            return AverageGrid(height=int(height), width=int(width))
        if name == "positions":
            return RandomPositions(count=int(rest))
        if name == "channels":
            return ChannelSubset(channels=tuple(int(number) for number in rest.split(",")))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    raise ValueError(
        f"unknown reduction {text!r}; use none, spatial_mean, "
        "spatial_max, cls_token, grid:7x7, positions:8 or channels:0,5"
    )
