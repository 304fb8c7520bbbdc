"""Grid: feature maps of a layer side by side, one picture per layer and sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from PIL.Image import Resampling

from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.common.arrays import Array
from pipeline.common.configured import Channels, Columns, Positive, TileSize, configured
from pipeline.common.errors import plural
from pipeline.rendering.channel_ranking import Basis, Select, check_chosen, rank_channels
from pipeline.rendering.drawing.bars import bars
from pipeline.rendering.drawing.colormaps import (
    AUTO,
    SIGNED,
    UNSIGNED,
    Colormap,
    Percentiles,
    Scale,
    indices,
    limits,
    normalize,
    not_finite,
    palette,
    symmetric,
)
from pipeline.rendering.drawing.text_and_resize import enlarge, resample
from pipeline.rendering.drawing.tile_layout import Tile, TileLayout, with_bar
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.views import LayerView, SampleView

_LISTED = 5  # values under the bars of a vector


@configured
class Grid(Renderer):
    """A grid of feature maps; a vector as one bar per channel.

    Attributes:
        max_channels: maximum number of channels, or `all`.
        columns: maps per row.
        channels: channel numbers to draw, in this order, instead of `select`; a layer without one
            of them is an error.
        select: `first`, or the strongest by `mean`, `variance` or `max`.
        select_over: rank channels within each `sample`, or over the whole `dataset`, so that every
            sample shows the same channels.
        order: `strength` (strongest first) or `channel`.
        normalize: scope of the colour range: one `map`, all maps of the `layer` in the sample, or
            all of the layer in the `dataset`, so that pictures are comparable.
        symmetric: whether the range is symmetric around zero, for diverging colormaps and layers
            with negative values.
        percentile: clip the range to these percentiles of the values; `[0, 100]` is minimum to
            maximum, the only choice with `normalize=dataset`.
        scale: `linear`, `log` or `symlog`.
        colormap: any matplotlib colormap, or `auto`: for layers with negative values a diverging
            one with zero in the middle, else viridis.
        tile_size: longer side of a map in pixels; larger maps are averaged.
        upscale: `nearest` or `smooth`.
        colorbar: whether to show the range: as a colour bar if maps share it, else as numbers with
            each map.
    """

    max_channels: Positive | Literal["all"] = 16
    columns: Columns = 4
    channels: Channels = ()
    select: Select = "first"
    select_over: Basis = "sample"
    order: Literal["strength", "channel"] = "strength"
    normalize: Literal["map", "layer", "dataset"] = "map"
    symmetric: bool = False
    percentile: Percentiles = (0.0, 100.0)
    scale: Scale = "linear"
    colormap: Colormap = "viridis"
    tile_size: TileSize = 224
    upscale: Literal["nearest", "smooth"] = "nearest"
    colorbar: bool = False

    def __post_init__(self) -> None:
        if self.channels:
            self.unused("with channels", "select", "select_over", "order")
        elif self.select == "first":
            self.unused("with select=first", "select_over", "order")
        if self.normalize == "dataset":
            self.unused("with normalize=dataset", "percentile")
        if self.normalize == "map" and self.titles in ("headline", "none"):
            self.unused("without titles of maps", "colorbar")

    def check(self, channels: dict[str, int]) -> None:
        check_chosen(self.channels, channels)

    def pictured(self, layers: Sequence[LayerEntry]) -> list[str | None]:
        return [layer.name for layer in layers]

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        for layer in sample.layers:
            yield Picture(layer=layer.name, drawing=self.draw_layer(layer, sample))

    def draw_layer(self, layer: LayerView, sample: SampleView) -> TileLayout:
        """Return the grid of one layer."""
        if self.colormap == AUTO:
            return self.resolved(layer).draw_layer(layer, sample)
        shared = self._shared_limits(layer)
        chosen = self.choose(layer)
        if layer.vector:
            tiles = [self._bars(layer, shared)]
        else:
            tiles = [self._tile(layer, int(channel), shared) for channel in chosen]
        note = self._note(layer, len(chosen))
        picture = self.composed(sample, tiles, self.columns, layer.alias, note)
        if self.colorbar and shared and not layer.vector:
            low, high = shared
            picture = with_bar(picture, f"{low:.3g}", f"{high:.3g}")
        return picture

    def resolved(self, layer: LayerView) -> Grid:
        """Return this renderer with `auto` replaced by the layer's colormap."""
        if self.colormap != AUTO:
            return self
        if layer.signed:
            return replace(self, colormap=SIGNED, symmetric=True)
        return replace(self, colormap=UNSIGNED)

    def paint(self, values: Array, shared: tuple[float, float] | None = None) -> Array:
        """Return a map `(height, width)` as uint8 palette indices, over the `shared` range or else
        its own.
        """
        low, high = shared or self._limits(values)
        return indices(normalize(values, low, high, self.scale))

    def _tile(self, layer: LayerView, channel: int, shared: tuple[float, float] | None) -> Tile:
        values = layer.maps[channel]
        low, high = shared or self._limits(values)
        if max(values.shape) > self.tile_size:
            pixels = self.paint(resample(values, self.tile_size, Resampling.BOX), (low, high))
        elif self.upscale == "smooth":
            pixels = self.paint(resample(values, self.tile_size, Resampling.BILINEAR), (low, high))
        else:
            pixels = enlarge(self.paint(values, (low, high)), self.tile_size)
        return Tile(
            pixels=pixels,
            palette=palette(self.colormap),
            title=f"{layer.alias} · ch {channel}{_flaw(values)}",
            note=f"{low:.3g} … {high:.3g}" if self.colorbar and not shared else "",
        )

    def _bars(self, layer: LayerView, shared: tuple[float, float] | None) -> Tile:
        values = layer.maps[:, 0, 0]
        low, high = shared or self._limits(values)
        size = self.tile_size, self.columns * self.tile_size
        return Tile(
            pixels=bars(values, size, (low, high), self.scale),
            palette=palette(self.colormap),
            title=f"{layer.alias} · {plural(layer.channels, 'channel')}{_flaw(values)}",
            note=self._values(layer, low, high),
        )

    def _values(self, layer: LayerView, low: float, high: float) -> str:
        """Return a vector's range and mean, and its values at the chosen or largest channels."""
        values = layer.maps[:, 0, 0]
        finite = values[np.isfinite(values)].astype(np.float64)
        if not finite.size:
            return "nothing finite"
        chosen = self.choose(layer) if self.channels else rank_channels(layer, "max", "sample")
        texts = [f"ch {channel} ({values[channel]:.3g})" for channel in chosen[:_LISTED]]
        kind = "chosen" if self.channels else "largest"
        return f"{low:.3g} … {high:.3g} · mean {finite.mean():.3g} · {kind}: {', '.join(texts)}"

    def _limits(self, values: Array) -> tuple[float, float]:
        span = limits(values, self.percentile)
        return symmetric(span) if self.symmetric else span

    def _shared_limits(self, layer: LayerView) -> tuple[float, float] | None:
        if self.normalize == "map":
            return None
        if self.normalize == "dataset" and layer.statistics:
            return self._limits(np.stack([layer.statistics["min"], layer.statistics["max"]]))
        return self._limits(layer.maps)

    def choose(self, layer: LayerView) -> Array:
        """Return the channel numbers to draw, `(channel,)`."""
        if self.channels:
            return np.array(self.channels)
        chosen = rank_channels(layer, self.select, self.select_over)
        chosen = chosen if self.max_channels == "all" else chosen[: self.max_channels]
        return np.sort(chosen) if self.order == "channel" else chosen

    def _note(self, layer: LayerView, count: int) -> str:
        if layer.vector:
            return f"a bar per channel, from zero · {self._range().partition(' ')[0]}"
        which = f"strongest by {self.select} over the {self.select_over}"
        if self.channels or self.select == "first":
            which = "chosen" if self.channels else "first"
        height, width = layer.maps.shape[1:]
        return f"{count} of {layer.channels} maps ({which}) · {width}×{height} · {self._range()}"

    def _range(self) -> str:
        low, high = self.percentile
        clip = "" if (low, high) == (0, 100) else f", percentiles {low:g}–{high:g}"
        around = ", symmetric" if self.symmetric else ""
        shared = f"range per {self.normalize}"
        if self.normalize == "dataset":
            shared = "one range for the dataset"
        return f"{self.scale} {self.colormap}, {shared}{around}{clip}"


def _flaw(values: Array) -> str:
    """Return a map's defect for its title: empty, non-finite values or blank."""
    blank = values.size > 1 and values.min() == values.max()
    return not_finite(values) or (" · blank" if blank else "")
