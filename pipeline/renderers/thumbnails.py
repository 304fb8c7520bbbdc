"""Thumbnails: the input and the mean maps of all layers in a row, for the gallery's table."""

from collections.abc import Iterator

import numpy as np

from pipeline.common.configured import configured
from pipeline.renderers.mean_map import MeanMap
from pipeline.rendering.drawing.colormaps import AUTO
from pipeline.rendering.drawing.text_and_resize import PAPER, fit
from pipeline.rendering.drawing.tile_layout import TileLayout
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.views import SampleView


@configured
class Thumbnails(Renderer):
    """One row of squares, `tile_size` pixels each, `gap` pixels apart, without text.

    Attributes:
        tile_size: side of a square in pixels.
        gap: space between squares in pixels.
    """

    tile_size: int = 96
    gap: int = 8

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        yield Picture(layer=None, drawing=self.row(sample))

    def row(self, sample: SampleView) -> TileLayout:
        """Return the squares of a sample."""
        means = MeanMap(colormap=AUTO, tile_size=self.tile_size)
        tiles = [
            fit(sample.image, self.tile_size),
            *(means.tile(layer, sample).rgb for layer in sample.layers),
        ]
        pitch = self.tile_size + self.gap
        row = np.full((self.tile_size, pitch * len(tiles) - self.gap, 3), PAPER, dtype=np.uint8)
        for i, tile in enumerate(tiles):
            height, width = tile.shape[:2]
            top, left = (self.tile_size - height) // 2, i * pitch + (self.tile_size - width) // 2
            row[top : top + height, left : left + width] = tile
        return TileLayout(paper=row)
