"""Filters: convolution weights as RGB tiles, one picture per archive."""

from collections.abc import Iterator

import numpy as np

from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.configured import Columns, Positive, TileSize, configured
from pipeline.common.errors import known
from pipeline.rendering.drawing.text_and_resize import enlarge
from pipeline.rendering.drawing.tile_layout import Tile, compose
from pipeline.rendering.renderer import Picture, Renderer


@configured
class Filters(Renderer):
    """The filters of the first convolution.

    Each filter is scaled by its largest magnitude: grey is zero, and the colours keep their signs.
    Three input channels are drawn as RGB (also for BGR models); any other number is drawn as one
    grey tile per channel.

    Attributes:
        layer: another convolution with stored filters; empty selects the first.
        max_channels: maximum number of filters.
        columns: tiles per row.
        tile_size: pixels of the longer side of a filter.
    """

    layer: str = ""
    max_channels: Positive = 64
    columns: Columns = 8
    tile_size: TileSize = 63

    def draw_archive(self, archive: Archive) -> Iterator[Picture]:
        """Return one picture; none if the archive holds no filters."""
        filters = archive.filters
        known(self.layer, ["", *filters], "layer: the archive holds no filters of")
        if not filters:
            return
        layer = self.layer or next(iter(filters))
        weights = filters[layer]
        if archive.manifest.bgr:
            weights = weights[:, ::-1]
        tiles = []
        for number, weight in enumerate(weights[: self.max_channels]):
            images = [weight] if len(weight) == 3 else [channel[None] for channel in weight]
            for channel, image in enumerate(images):
                title = f"{number}" if len(images) == 1 else f"{number} · in {channel}"
                tiles.append(Tile(pixels=enlarge(as_rgb(image), self.tile_size), title=title))
        count, channels, height, width = weights.shape
        shown = min(self.max_channels, count)
        yield Picture(
            layer=layer,
            title=f"filters of {layer}",
            drawing=compose(
                tiles,
                self.columns,
                caption=f"filters of {layer} · {archive.manifest.model_title}",
                note=f"{shown} of {count} filters, {width}×{height}×{channels} · grey is zero, "
                "each scaled by its largest weight",
                titles=self.titles,
            ),
        )


def as_rgb(weight: Array) -> Array:
    """Return a filter `(channel, height, width)` with one or three channels as colours.

    Returns:
        uint8 `(height, width, rgb)`: 255 · (0.5 + weight / (2 · largest magnitude)).
    """
    values = np.where(np.isfinite(weight), weight, 0).astype(np.float64)
    largest = np.abs(values).max(initial=0) or 1.0
    colors = np.rint((0.5 + values / (2 * largest)) * 255).astype(np.uint8).transpose(1, 2, 0)
    rgb: Array = np.broadcast_to(colors, (*colors.shape[:2], 3))
    return rgb
