"""Attention: where each head of a layer attends to, over the input; an overview over layers."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.configured import Channels, Columns, Share, TileSize, configured
from pipeline.common.errors import ConfigError, listed
from pipeline.renderers.mean_map import over_channels
from pipeline.renderers.top_samples import dimmed, laid_over
from pipeline.rendering.attention_maps import (
    Query,
    attention_maps,
    is_attention,
    misfit,
    query_text,
)
from pipeline.rendering.drawing.colormaps import (
    Colormap,
    Scale,
    colorize,
    limits,
    normalize,
    not_finite,
)
from pipeline.rendering.drawing.text_and_resize import fit
from pipeline.rendering.drawing.tile_layout import Tile, TileLayout, even_columns
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.views import LayerView, SampleView, input_tile

log = logging.getLogger(__name__)


@configured
class AttentionMaps(Renderer):
    """Attention weights over the input: the mean over heads and every head of a layer, and the
    means of all layers with the rollout in one picture.

    Prefix tokens (class, registers) are not drawn; the sum under a map is the share of attention
    that the patches receive. Layers whose token grid is unknown are left out.

    Attributes:
        query: `class` (the class token; without one, the mean over queries), `mean` (over all
            queries), or a row and column of the token grid (`[3,5]`). Layers reduced to one row per
            head show that row.
        heads: head numbers to draw; empty draws all.
        normalize: scope of the colour range, from 0 to the largest weight: each `map`, or all maps
            of the `layer`.
        percentile: end the range at this percentile of the weights.
        scale: `linear`, `log` or `symlog`.
        overlay: opacity over the input (in grey) at the end of the range, 0..1, falling to 0 at its
            start; 0 draws the map alone.
        colormap: any matplotlib colormap.
        columns: maximum number of tiles per row; fewer if that fills the rows evenly.
        tile_size: longer side of each tile in pixels.
    """

    type_key: ClassVar[str] = "attention"

    query: Query = "class"
    heads: Channels = ()
    normalize: Literal["map", "layer"] = "map"
    percentile: Annotated[float, Field(gt=0, le=100)] = 100.0
    scale: Scale = "linear"
    overlay: Share = 0.85
    colormap: Colormap = "inferno"
    columns: Columns = 6
    tile_size: TileSize = 192

    def prepare(self, archive: Archive, folder: Path, stack: ExitStack) -> Renderer:
        """Return this renderer; log which layers are left out."""
        layers = [entry for entry in archive.manifest.layers if is_attention(entry)]
        reasons: dict[str, list[str]] = {}
        for entry in layers:
            reasons.setdefault(misfit(entry, self.query), []).append(entry.alias)
        left_out = "; ".join(
            f"{listed(names, 1)}: {reason}" for reason, names in reasons.items() if reason
        )
        if not layers:
            raise ConfigError(
                "query: the archive holds no attention weights; extract them with layers=attention"
            )
        if not self.pictured(layers):
            raise ConfigError(f"query: no attention weights can be drawn: {left_out}")
        for entry in layers:
            if entry.channels > 1 and max(self.heads, default=0) >= entry.channels:
                raise ConfigError(
                    f"heads: no head {max(self.heads)} in {entry.alias}; use 0 to "
                    f"{entry.channels - 1}"
                )
        if left_out:
            log.warning("attention: left out: %s", left_out)
        return self

    def pictured(self, layers: Sequence[LayerEntry]) -> list[str | None]:
        names = [entry.name for entry in layers if self._draws(entry)]
        return [None, *names] if names else []

    def _draws(self, layer: LayerEntry | LayerView) -> bool:
        return is_attention(layer) and not misfit(layer, self.query)

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        """Return a picture of all layers, then one per layer."""
        layers = [layer for layer in sample.layers if self._draws(layer)]
        if not layers:
            return
        tiles = [input_tile(sample, self.tile_size)] if sample.has_input else []
        for layer in layers:
            mean = over_channels(attention_maps(layer, self.query) or layer)
            tiles.append(self._tile(mean, sample, layer.alias))
        texts = ", ".join(dict.fromkeys(query_text(layer, self.query) for layer in layers))
        yield Picture(
            layer=None, drawing=self._composed(tiles, sample, "attention · mean over heads", texts)
        )
        for layer in layers:
            yield Picture(layer=layer.name, drawing=self.draw_layer(layer, sample))

    def draw_layer(self, layer: LayerView, sample: SampleView) -> TileLayout:
        """Return the mean over heads and every head of a layer."""
        view = attention_maps(layer, self.query)
        if view is None:
            raise ConfigError(f"query: {layer.alias}: {misfit(layer, self.query)}")
        mean = over_channels(view)
        titled = {"rollout" if "@rollout" in layer.name else "mean over heads": mean}
        if layer.channels > 1:
            titled |= {f"head {i}": view.maps[i] for i in self.heads or range(layer.channels)}
        shared = self.normalize == "layer"
        span = self._span(np.stack(list(titled.values()))) if shared else None
        tiles = [self._input(sample, mean.shape)] if sample.has_input else []
        tiles += [self._tile(values, sample, title, span) for title, values in titled.items()]
        return self._composed(tiles, sample, layer.alias, query_text(layer, self.query))

    def _span(self, values: Array) -> tuple[float, float]:
        low, high = limits(values, (0.0, self.percentile))
        return min(low, 0.0), high

    def _input(self, sample: SampleView, grid: tuple[int, ...]) -> Tile:
        tile = input_tile(sample, self.tile_size)
        if isinstance(self.query, tuple):
            tile = replace(tile, pixels=framed(tile.pixels, self.query, grid))
        return tile

    def _tile(
        self, values: Array, sample: SampleView, title: str,
        span: tuple[float, float] | None = None,
    ) -> Tile:  # fmt: skip
        low, high = span or self._span(values)
        unit = normalize(values, low, high, self.scale)
        if self.overlay and sample.has_input:
            image = fit(dimmed(sample.image), self.tile_size)
            pixels = laid_over(unit, image, self.overlay, self.colormap)
        else:
            pixels = fit(colorize(unit, self.colormap), self.tile_size)
        if isinstance(self.query, tuple):
            pixels = framed(pixels, self.query, values.shape)
        share = values[np.isfinite(values)].sum()
        note = f"{low:.2g} … {high:.2g} · sum {share:.2f}{not_finite(values)}"
        return Tile(pixels=pixels, title=title, note=note)

    def _composed(
        self, tiles: list[Tile], sample: SampleView, title: str, query: str
    ) -> TileLayout:
        clip = "" if self.percentile == 100 else f", to the {self.percentile:g}th percentile"
        note = (
            f"attention {query} to each patch · {self.scale} {self.colormap}, range per "
            f"{self.normalize}{clip} · sum: share of attention that the patches receive"
        )
        return self.composed(sample, tiles, even_columns(len(tiles), self.columns), title, note)


def framed(picture: Array, position: tuple[int, int], grid: tuple[int, ...]) -> Array:
    """Return a picture with a white frame in a black one around a position of its grid."""
    height, width = picture.shape[:2]
    (top, bottom), (left, right) = (
        (index * size // count, (index + 1) * size // count)
        for index, size, count in zip(position, (height, width), grid, strict=True)
    )
    picture = picture.copy()
    for grown, color in ((1, 0), (0, 255)):
        rows = np.clip([top - grown, bottom - 1 + grown], 0, height - 1)
        columns = np.clip([left - grown, right - 1 + grown], 0, width - 1)
        picture[rows, columns[0] : columns[1] + 1] = color
        picture[rows[0] : rows[1] + 1, columns] = color
    return picture
