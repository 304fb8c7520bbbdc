"""Grid: some feature maps of a layer side by side, one picture per layer and sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pipeline.colormaps import Scale, check_percentile, colorize, limits, normalize, table
from pipeline.errors import ConfigError
from pipeline.renderers.base import Array, LayerView, Picture, Renderer, SampleView, caption
from pipeline.renderers.canvas import PAPER, Tile, compose, enlarge


class Select(StrEnum):
    """Which channels to draw.

    The first ones, or the strongest by their mean or variance over the positions.
    """

    FIRST = "first"
    MEAN = "mean"
    VARIANCE = "variance"


class Scope(StrEnum):
    """What shares one colour range.

    Each map has its own, or all maps of the layer have the same.
    """

    MAP = "map"
    LAYER = "layer"


@dataclass(frozen=True, kw_only=True)
class Grid(Renderer):
    """A grid of feature maps.

    Attributes:
        maps: how many, at most.
        columns: maps per row.
        channels: these channels, in this order, instead of `select`; a layer that lacks one is an
            error.
        select: `first`, or the strongest by `mean` or `variance`, strongest first.
        normalize: `map` or `layer`: what shares a colour range.
        percentile: clip the range to these percentiles of the values; `[0, 100]` is minimum to
            maximum.
        scale: `linear`, `log` or `symlog`.
        colormap: any of matplotlib's.
        cell: pixels that the longer side of a map is enlarged to, in whole steps.
        titles: whether each map says its layer and channel.
    """

    maps: int = 16
    columns: int = 4
    channels: tuple[int, ...] = ()
    select: Select = Select.FIRST
    normalize: Scope = Scope.MAP
    percentile: tuple[float, ...] = (0.0, 100.0)
    scale: Scale = Scale.LINEAR
    colormap: str = "viridis"
    cell: int = 224
    titles: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "percentile", check_percentile(self.percentile))
        for name in ("maps", "columns", "cell"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if any(channel < 0 for channel in self.channels):
            raise ValueError(f"channels are numbered from 0, got {list(self.channels)}")
        table(self.colormap)

    def check(self, channels: dict[str, int]) -> None:
        """See `Renderer.check`."""
        for layer, count in channels.items():
            if self.channels and max(self.channels) >= count:
                raise ConfigError(
                    f"channels: {max(self.channels)} is asked for, layer {layer} has {count} (0 "
                    f"to {count - 1})"
                )

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        """Return one picture per layer."""
        for layer in sample.layers:
            yield Picture(layer=layer.name, rgb=self.draw_layer(layer, sample))

    def draw_layer(self, layer: LayerView, sample: SampleView) -> Array:
        """Return the grid of one layer."""
        chosen = np.array([0]) if layer.vector else self.choose(layer.maps)
        maps = layer.maps[chosen]
        shared = limits(layer.maps, self.percentile) if self.normalize is Scope.LAYER else None
        tiles = []
        for channel, values in zip(chosen, maps, strict=True):
            low, high = shared or limits(values, self.percentile)
            rgb = colorize(normalize(values, low, high, self.scale), self.colormap)
            if layer.mask is not None:
                rgb[~layer.mask] = PAPER
            what = f"{layer.channels} channels" if layer.vector else f"ch {channel}"
            title = f"{layer.alias} · {what}" if self.titles else ""
            tiles.append(Tile(rgb=enlarge(rgb, self.cell), title=title))
        return compose(
            tiles,
            self.columns,
            caption=caption(sample, layer.alias),
            note=self._note(layer, len(chosen)),
        )

    def choose(self, maps: Array) -> Array:
        """Return the numbers of the channels to draw of `(channel, height, width)`."""
        if self.channels:
            return np.array(self.channels)
        count = min(self.maps, len(maps))
        if self.select is Select.FIRST:
            return np.arange(count)
        finite = np.isfinite(maps)
        values = np.where(finite, maps, 0).reshape(len(maps), -1).astype(np.float64)
        number = np.maximum(finite.reshape(len(maps), -1).sum(axis=1), 1)
        strength = values.sum(axis=1) / number
        if self.select is Select.VARIANCE:
            strength = (values**2).sum(axis=1) / number - strength**2
        return np.argsort(-strength, kind="stable")[:count]

    def _note(self, layer: LayerView, count: int) -> str:
        if layer.vector:
            return f"all {layer.channels} numbers, row by row · {self._range()}"
        which = "chosen" if self.channels else self.select.value
        if self.select is not Select.FIRST and not self.channels:
            which = f"strongest by {self.select.value}"
        height, width = layer.maps.shape[1:]
        return f"{count} of {layer.channels} maps ({which}) · {width}×{height} · {self._range()}"

    def _range(self) -> str:
        clip = (
            ""
            if self.percentile == (0.0, 100.0)
            else f", percentiles {self.percentile[0]:g}–{self.percentile[1]:g}"
        )
        return f"{self.scale.value} {self.colormap}, range per {self.normalize.value}{clip}"
