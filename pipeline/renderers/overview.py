"""Overview: the input, then every layer's mean map above its PCA projection.

In one picture per sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.renderers.base import LayerView, Picture, Renderer, SampleView, caption
from pipeline.renderers.canvas import Tile, compose, fit, size_of
from pipeline.renderers.mean_map import MeanMap
from pipeline.renderers.pca import PCA


@dataclass(frozen=True, kw_only=True)
class Overview(Renderer):
    """One look at a sample.

    Attributes:
        columns: tiles per row, at most; each layer takes two, one below the other.
        colormap: of the mean maps.
        cell: pixels of the longer side of each tile.
    """

    columns: int = 7
    colormap: str = "viridis"
    cell: int = 160

    def __post_init__(self) -> None:
        for name in ("columns", "cell"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        MeanMap(colormap=self.colormap)

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        """Return one picture."""
        means = MeanMap(colormap=self.colormap, cell=self.cell)
        projections = PCA(cell=self.cell)
        image = Tile(rgb=fit(sample.image, self.cell), title="input", note=size_of(sample.image))
        rows = -(-(len(sample.layers) + 1) // self.columns)
        columns = -(-(len(sample.layers) + 1) // rows)  # rows of about equal length
        upper = [image, *(means.tile(layer, sample) for layer in sample.layers)]
        lower = [_blank(self.cell), *(self._below(projections, layer) for layer in sample.layers)]
        tiles: list[Tile] = []
        for first in range(0, len(upper), columns):
            for line in (upper, lower):
                row = line[first : first + columns]
                tiles += row + [_blank(self.cell)] * (columns - len(row))
        note = (
            f"mean map ({self.colormap}, range per map) above PCA (red, green, blue; % of variance)"
        )
        yield Picture(
            layer=None, rgb=compose(tiles, columns, caption=caption(sample, "overview"), note=note)
        )

    def _below(self, projections: PCA, layer: LayerView) -> Tile:
        if layer.vector:
            return _blank(self.cell)
        return replace(projections.tile(layer, sized=False), title="PCA")


def _blank(cell: int) -> Tile:
    return Tile(rgb=np.full((1, cell, 3), 255, dtype=np.uint8))
