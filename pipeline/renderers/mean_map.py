"""Mean map: a statistic over channels at every position; all layers in one picture."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.configured import Columns, Share, TileSize, configured
from pipeline.common.errors import ConfigError, plural
from pipeline.rendering.attention_maps import attention_maps
from pipeline.rendering.drawing.bars import bars
from pipeline.rendering.drawing.colormaps import (
    Colormap,
    Percentiles,
    Scale,
    colorize,
    limits,
    normalize,
    not_finite,
    palette,
    resolved,
)
from pipeline.rendering.drawing.text_and_resize import fit, size_of
from pipeline.rendering.drawing.tile_layout import Tile, even_columns
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.views import LayerView, SampleView, input_tile

OverChannels = Literal["mean", "max", "std", "norm"]


@configured
class MeanMap(Renderer):
    """The mean (or another statistic) over channels at every position.

    Attributes:
        statistic: `mean`, `max`, `std` or `norm` (L2) over the channels.
        columns: maximum number of layers per row; fewer if that fills the rows evenly.
        input: whether the picture begins with the model's input.
        colormap: any matplotlib colormap, or `auto`: for layers with negative values a diverging
            one with zero in the middle, else viridis.
        percentile: clip the range to these percentiles.
        scale: `linear`, `log` or `symlog`.
        overlay: opacity of the map laid over the input, 0..1; 0 draws the map alone.
        tile_size: longer side of each map in pixels.
    """

    statistic: OverChannels = "mean"
    columns: Columns = 4
    input: bool = True
    colormap: Colormap = "viridis"
    percentile: Percentiles = (0.0, 100.0)
    scale: Scale = "linear"
    overlay: Share = 0.0
    tile_size: TileSize = 224

    def prepare(self, archive: Archive, folder: Path, stack: ExitStack) -> Renderer:
        if self.overlay and not archive.has_inputs:
            raise ConfigError("overlay: the archive holds no inputs; leave it out")
        return self

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        tiles = [input_tile(sample, self.tile_size)] if self.input and sample.has_input else []
        tiles += [self.tile(layer, sample) for layer in sample.layers]
        over = f", over the input ({self.overlay:.0%})" if self.overlay else ""
        note = f"{self.statistic} over channels · {self.scale} {self.colormap}, range per map{over}"
        columns, title = even_columns(len(tiles), self.columns), f"{self.statistic} maps"
        yield Picture(layer=None, drawing=self.composed(sample, tiles, columns, title, note))

    def tile(
        self, layer: LayerView, sample: SampleView, span: tuple[float, float] | None = None
    ) -> Tile:
        """Return a layer's mean map over `span` (default: its own range); a vector as bars."""
        if layer.vector:
            return self._bars(layer, span)
        over = attention_maps(layer) if self.overlay else None
        layer = over or layer
        mean = memoized(layer, self.statistic)
        span = span or limits(mean, self.percentile)
        colormap, (low, high) = resolved(self.colormap, span, signed=layer.signed)
        rgb = colorize(normalize(mean, low, high, self.scale), colormap)
        if over:
            rgb = overlaid(rgb, sample.image, self.overlay)
        note = f"{size_of(layer.maps[0])} · {_range(layer.maps, mean, low, high)}"
        return Tile(pixels=fit(rgb, self.tile_size), title=layer.alias, note=note)

    def _bars(self, layer: LayerView, span: tuple[float, float] | None) -> Tile:
        values = layer.maps[:, 0, 0]
        low, high = span or limits(values, self.percentile)
        return Tile(
            pixels=bars(values, (self.tile_size, self.tile_size), (low, high), self.scale),
            palette=palette(resolved(self.colormap, (0, 0), signed=False)[0]),
            title=layer.alias,
            note=f"{plural(layer.channels, 'channel')} · {_range(values, values, low, high)}",
        )


def _range(values: Array, drawn: Array, low: float, high: float) -> str:
    """Return the range of what is drawn, and how many `values` are not finite, for a note."""
    if not np.isfinite(values).any():
        return "nothing finite"
    span = f"{low:.2g} … {high:.2g}" if drawn.any() else "all 0"
    return f"{span}{not_finite(values)}"


def over_channels(layer: LayerView, statistic: OverChannels = "mean") -> Array:
    """Return a statistic over the finite channels at every position, float64 `(height, width)`; NaN
    at positions without a finite value.
    """
    values = np.ma.masked_invalid(layer.maps.astype(np.float64))
    if statistic == "norm":
        figure = np.ma.sqrt(np.square(values).sum(axis=0))
    else:
        figure = getattr(values, statistic)(axis=0)
    return np.asarray(figure.filled(np.nan))


def memoized(layer: LayerView, statistic: OverChannels = "mean") -> Array:
    """Return `over_channels`, computed once per layer and sample; rounding errors are 0.

    The mean after a LayerNorm is an example: a map of its rounding errors shows nothing.
    """

    def compute() -> Array:
        figure = over_channels(layer, statistic)
        largest = np.where(np.isfinite(layer.maps), np.abs(layer.maps), 0).max(axis=0)
        return np.where(np.abs(figure) < np.finfo(np.float32).eps * largest, 0, figure)

    return layer.memoize(("over channels", statistic), compute)


def overlaid(rgb: Array, image: Array, opacity: float) -> Array:
    """Return a map resized to the input and blended over it with this opacity."""
    height, width = image.shape[:2]
    large = np.asarray(
        Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32
    )
    return np.rint(opacity * large + (1 - opacity) * image).astype(np.uint8)
