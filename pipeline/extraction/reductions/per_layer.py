"""A reduction for each layer, and the short text form of reductions."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from pipeline.capture.axes import Axes
from pipeline.common.configured import configured, type_key_of
from pipeline.common.errors import ConfigError, suggestion
from pipeline.extraction.reductions.base import NoReduction, Reduction
from pipeline.extraction.reductions.pooling import AverageGrid, SpatialMax, SpatialMean
from pipeline.extraction.reductions.subsets import ChannelSubset, ClsToken, RandomPositions

if TYPE_CHECKING:
    from torch import Tensor


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
        if not self.layers and self.default == "none":
            raise ValueError(
                "layers: is empty, so no layer would be reduced; set layers or default"
            )
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
