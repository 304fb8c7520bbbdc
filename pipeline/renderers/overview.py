"""Overview: one picture per sample with the input and, per layer, some maps, mean map and PCA."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest

import numpy as np

from pipeline.common.configured import Columns, Natural, TileSize, configured
from pipeline.renderers.grid import Grid
from pipeline.renderers.mean_map import MeanMap
from pipeline.renderers.pca import PCA
from pipeline.rendering.drawing.colormaps import AUTO, SIGNED, UNSIGNED, Colormap, Scale, palette
from pipeline.rendering.drawing.text_and_resize import PAPER, fit
from pipeline.rendering.drawing.tile_layout import Tile, blank_tile, even_columns
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.views import LayerView, SampleView, input_tile

_SEAM = 2


@configured
class Overview(Renderer):
    """A sample at a glance.

    Attributes:
        columns: maximum number of tile columns; a layer takes three tiles of a column, a vector
            one.
        side: maps along each side of the square of maps, which shows the channels that vary most
            over the dataset, the same for every sample; 0 omits it.
        colormap: colormap of the maps; `auto` centres zero for layers with negative values; see
            `Grid`.
        scale: `linear`, `log` or `symlog`.
        tile_size: longer side of each tile in pixels.
    """

    columns: Columns = 7
    side: Natural = 3
    colormap: Colormap = AUTO
    scale: Scale = "linear"
    tile_size: TileSize = 160

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        stacks = [[input_tile(sample, self.tile_size)]] if sample.has_input else []
        room = 0  # free tiles for vectors in the last column
        for layer in sample.layers:
            if layer.vector and room:
                stacks[-1] += self._stack(layer, sample)
                room -= 1
            else:
                stacks.append(self._stack(layer, sample))
                room = (2 if self.side else 1) if layer.vector else 0
        columns = even_columns(len(stacks), self.columns)
        blank = blank_tile(self.tile_size)
        tiles: list[Tile] = []
        for first in range(0, len(stacks), columns):
            band = stacks[first : first + columns]
            band += [[]] * (columns - len(band))
            for line in zip_longest(*band, fillvalue=blank):
                tiles += line
        excerpt = "the maps that vary most over the dataset, " if self.side else ""
        colors = self.colormap
        if colors == AUTO:
            signed = any(layer.signed for layer in sample.layers)
            unsigned = not all(layer.signed for layer in sample.layers)
            notes = [f"{SIGNED} around zero for layers with negative values"] * signed
            colors = ", else ".join(notes + [UNSIGNED] * unsigned)
        note = f"{excerpt}mean map ({colors}; range per map), PCA (red, green, blue; % of variance)"
        yield Picture(layer=None, drawing=self.composed(sample, tiles, columns, "overview", note))

    def _stack(self, layer: LayerView, sample: SampleView) -> list[Tile]:
        means = MeanMap(colormap=self.colormap, scale=self.scale, tile_size=self.tile_size)
        mean = means.tile(layer, sample)
        if layer.vector:
            return [mean]
        projection = replace(PCA(tile_size=self.tile_size).tile(layer, sized=False), title="PCA")
        if not self.side:
            return [mean, projection]
        return [self._excerpt(layer), replace(mean, title="mean map"), projection]

    def _excerpt(self, layer: LayerView) -> Tile:
        grid = Grid(
            max_channels=self.side**2, select="variance", select_over="dataset",
            colormap=self.colormap, scale=self.scale, tile_size=1,
        )  # fmt: skip
        grid = grid.resolved(layer)
        chosen = grid.choose(layer)
        room = (self.tile_size - (self.side - 1) * _SEAM) // self.side
        colors = palette(grid.colormap)
        maps = [fit(colors[grid.paint(layer.maps[channel])], room) for channel in chosen]
        height, width = maps[0].shape[:2]
        rows = -(-len(maps) // self.side)
        size = (rows * (height + _SEAM) - _SEAM, self.side * (width + _SEAM) - _SEAM, 3)
        square = np.full(size, PAPER, dtype=np.uint8)
        for i, picture in enumerate(maps):
            top, left = i // self.side * (height + _SEAM), i % self.side * (width + _SEAM)
            square[top : top + height, left : left + width] = picture
        return Tile(pixels=square, title=layer.alias, note=f"{len(maps)} of {layer.channels} maps")
