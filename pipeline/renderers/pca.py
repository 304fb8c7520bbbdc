"""PCA: every layer's positions projected to colours, fitted to each sample.

In one picture per sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.colormaps import NONFINITE
from pipeline.projection import fit as fit_projection
from pipeline.projection import project_colors
from pipeline.renderers.base import Array, LayerView, Picture, Renderer, SampleView, caption
from pipeline.renderers.canvas import Tile, compose, fit, placeholder, size_of


@dataclass(frozen=True, kw_only=True)
class PCA(Renderer):
    """PCA projection.

    Attributes:
        components: 3 (red, green, blue: first, second, third component) or 1 (grey).
        columns: layers per row.
        input: whether the picture begins with what the model saw.
        cell: pixels of the longer side of each projection.
    """

    components: int = 3
    columns: int = 4
    input: bool = True
    cell: int = 224

    def __post_init__(self) -> None:
        if self.components not in (1, 3):
            raise ValueError(f"components must be 3 (colour) or 1 (grey), got {self.components}")
        for name in ("columns", "cell"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        """Return one picture: the input, then the projection of every layer."""
        tiles = (
            [Tile(rgb=fit(sample.image, self.cell), title="input", note=size_of(sample.image))]
            if self.input
            else []
        )
        tiles += [self.tile(layer) for layer in sample.layers]
        note = (
            "first three principal components as red, green, blue"
            if self.components == 3
            else "first principal component as grey"
        )
        rgb = compose(
            tiles,
            self.columns,
            caption=caption(sample, "PCA"),
            note=f"{note} · fitted to this sample, each scaled to its range · % of variance",
        )
        yield Picture(layer=None, rgb=rgb)

    def tile(self, layer: LayerView, *, sized: bool = True) -> Tile:
        """Return the projection of one layer, with its size and the explained variance."""
        if layer.vector or layer.maps[0].size == 1:
            return Tile(
                rgb=placeholder("no positions to project", self.cell), title=layer.alias, note=" "
            )
        rgb, explained = project(layer.maps, self.components)
        shares = " + ".join(f"{share:.0%}" for share in explained)
        note = f"{size_of(layer.maps[0])} · {shares}" if sized else shares
        return Tile(rgb=fit(rgb, self.cell), title=layer.alias, note=note)


def project(maps: Array, components: int = 3) -> tuple[Array, Array]:
    """Return the picture of a PCA fitted to one activation, and the explained variance.

    Args:
        maps: `(channel, height, width)`; positions with a non-finite value are left out of the fit
            and painted in `pipeline.colormaps.NONFINITE`.
        components: 3 or 1.

    Returns:
        uint8 `(height, width, rgb)`, and `(component,)` shares of the variance, 0..1.
    """
    channels, height, width = maps.shape
    positions = maps.reshape(channels, -1).T
    good = np.isfinite(positions).all(axis=1)
    picture = np.full((height * width, 3), NONFINITE, dtype=np.uint8)
    projection = fit_projection(positions[good], components)
    if good.any():
        picture[good] = project_colors(projection(positions[good]))  # one component repeats as grey
    return picture.reshape(height, width, 3), projection.explained
