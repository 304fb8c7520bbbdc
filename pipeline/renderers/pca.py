"""PCA: positions of every layer projected to colours, fitted per sample or to the dataset."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.configured import Columns, Natural, TileSize, configured
from pipeline.common.errors import ConfigError
from pipeline.rendering.channel_ranking import Basis
from pipeline.rendering.drawing.colormaps import NONFINITE
from pipeline.rendering.drawing.text_and_resize import fit, placeholder, size_of
from pipeline.rendering.drawing.tile_layout import Tile, even_columns
from pipeline.rendering.projection import (
    DatasetProjection,
    Projection,
    fit_dataset,
    fit_project,
    project_colors,
)
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.views import LayerView, SampleView, input_tile


@configured
class PCA(Renderer):
    """PCA projection.

    Attributes:
        components: 3 (red, green, blue: first, second, third component) or 1 (grey).
        fit: fit to each `sample`, or to the whole `dataset`, so that a direction means the same in
            every picture. The dataset fit (components, mean, explained variance, ranges) is stored
            next to the pictures as `fit-<layer>.npz`.
        shared_colors: with `fit=dataset`, use one colour range for all pictures: equal vectors have
            equal colours everywhere. If false, each picture uses the whole range.
        positions: with `fit=dataset`, number of positions sampled at random from each sample
            (reproducible by `seed`); 0 uses all.
        seed: random seed of `positions`.
        columns: maximum number of layers per row; fewer if that fills the rows evenly.
        input: whether the picture begins with the model's input.
        tile_size: longer side of each projection in pixels.
    """

    components: Literal[1, 3] = 3
    fit: Basis = "sample"
    shared_colors: bool = True
    positions: Natural = 0
    seed: int = 0
    columns: Columns = 4
    input: bool = True
    tile_size: TileSize = 224

    def __post_init__(self) -> None:
        if self.fit == "sample":
            self.unused("with fit=sample", "shared_colors", "positions", "seed")
        if not self.positions:
            self.unused("without positions", "seed")

    def prepare(self, archive: Archive, folder: Path, stack: ExitStack) -> Renderer:
        """Return this renderer with the dataset's projections, read from `folder` or fitted."""
        if self.fit == "sample":
            return self
        projections = fit_dataset(
            archive, folder, self.components, positions=self.positions, seed=self.seed
        )
        if not projections:
            raise ConfigError(
                "fit: no layer has positions to fit a projection to; use fit=sample or select "
                "layers with maps"
            )
        return _FittedPCA(**vars(self), projections=projections)

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        tiles = [input_tile(sample, self.tile_size)] if self.input and sample.has_input else []
        tiles += [self.tile(layer) for layer in sample.layers]
        kind = (
            "first three principal components as red, green, blue"
            if self.components == 3
            else "first principal component as grey"
        )
        how = "fitted to this sample, each scaled to its range"
        if self.fit == "dataset":
            how = "fitted to the dataset, " + (
                "the same colours in every picture" if self.shared_colors else "scaled per picture"
            )
        columns, note = even_columns(len(tiles), self.columns), f"{kind} · {how} · % of variance"
        yield Picture(layer=None, drawing=self.composed(sample, tiles, columns, "PCA", note))

    def tile(self, layer: LayerView, *, sized: bool = True) -> Tile:
        """Return the projection of one layer, with its size and the explained variance."""
        if layer.vector:
            return Tile(
                pixels=placeholder("no positions to project", self.tile_size),
                title=layer.alias,
                note=" ",
            )
        rgb, explained = self.project_layer(layer)
        shares = " + ".join(f"{share:.0%}" for share in explained)
        note = f"{size_of(layer.maps[0])} · {shares}" if sized else shares
        return Tile(pixels=fit(rgb, self.tile_size), title=layer.alias, note=note)

    def project_layer(self, layer: LayerView) -> tuple[Array, Array]:
        """Return a layer's colours, uint8 `(height, width, rgb)`, and shares of the variance."""
        return layer.memoize(("pca", self.components), lambda: project(layer.maps, self.components))


@dataclass(frozen=True, kw_only=True)
class _FittedPCA(PCA):
    projections: Mapping[str, DatasetProjection]

    def project_layer(self, layer: LayerView) -> tuple[Array, Array]:
        fitted = self.projections[layer.name]
        ends = (fitted.low, fitted.high) if self.shared_colors else (None, None)
        return painted(layer.maps, fitted, *ends), fitted.explained


def project(maps: Array, components: int = 3) -> tuple[Array, Array]:
    """Return the colours and explained variance of a PCA fitted to maps `(channel, height, width)`.

    Positions with a non-finite value are excluded from the fit and painted in `NONFINITE`. One
    component becomes grey.

    Returns:
        uint8 `(height, width, rgb)`, and `(component,)` shares of the variance, 0..1.
    """
    good, positions = _finite_positions(maps)
    projection, scores = fit_project(positions, components)
    return _picture(maps, good, project_colors(scores)), projection.explained


def painted(
    maps: Array, projection: Projection, low: Array | None = None, high: Array | None = None
) -> Array:
    """Return an activation's projection as colours; see `project` and `project_colors`."""
    good, positions = _finite_positions(maps)
    return _picture(maps, good, project_colors(projection(positions), low, high))


def _finite_positions(maps: Array) -> tuple[Array, Array]:
    """Return which positions are finite, and their vectors `(position, channel)`."""
    positions = maps.reshape(len(maps), -1).T
    good = np.asarray(np.isfinite(positions).all(axis=1))
    return good, positions if good.all() else positions[good]


def _picture(maps: Array, good: Array, colors: Array) -> Array:
    picture = np.full((good.size, 3), NONFINITE, dtype=np.uint8)
    picture[good] = colors
    return picture.reshape(*maps.shape[1:], 3)
