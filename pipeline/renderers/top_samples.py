"""Top samples: the samples that activate a channel most, with its map laid over them.

One picture per layer, with one row per chosen channel.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.configured import Channels, Positive, Share, TileSize, configured
from pipeline.common.errors import one_line
from pipeline.rendering.attention_maps import attention_maps, is_attention, query_text
from pipeline.rendering.channel_ranking import check_chosen
from pipeline.rendering.drawing.colormaps import Colormap, Scale, colorize, limits, normalize
from pipeline.rendering.drawing.text_and_resize import fit, scaled_size
from pipeline.rendering.drawing.tile_layout import Tile, blank_tile, compose
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.views import LayerView, input_image, layer_view

_BLOCK_ROWS = 4096
_RING = 0.06
"""Radius of the ring around a peak, in shares of the tile's longer side."""
_DIMMED = 0.6 * np.array([[0.299], [0.587], [0.114]])
"""Luminance of RGB, times 0.6."""


@configured
class TopSamples(Renderer):
    """The samples that activate a channel most, from the stored statistics.

    Attributes:
        channels: channel numbers, the same for every layer; empty selects those whose maximum is
            the most standard deviations above their mean.
        count: number of channels if `channels` is empty.
        samples: number of samples per row, the strongest first.
        by: rank by `max` or `mean` of the channel's map.
        opacity: opacity of the map over the photo at its maximum, 0..1; it falls to 0 at its
            minimum.
        crop: share of each side of the photo shown around the map's peak, 0..1; 1 shows it whole.
        colormap: any matplotlib colormap.
        scale: `linear`, `log` or `symlog`.
        tile_size: longer side of each photo in pixels.
    """

    channels: Channels = ()
    count: Positive = 8
    samples: Positive = 6
    by: Literal["max", "mean"] = "max"
    opacity: Share = 0.85
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    colormap: Colormap = "inferno"
    scale: Scale = "linear"
    tile_size: TileSize = 144

    def __post_init__(self) -> None:
        if not self.opacity:
            self.unused("with opacity=0", "colormap", "scale")

    def check(self, channels: dict[str, int]) -> None:
        check_chosen(self.channels, channels)

    def draw_archive(self, archive: Archive) -> Iterator[Picture]:
        _, width = scaled_size(np.empty(archive.manifest.image_shape[1:]), self.tile_size)
        for layer in archive.layers.values():
            channels = np.array(self.channels) if self.channels else self._outstanding(layer)
            rows, drives = top_rows(layer, channels, self.samples, self.by)
            views: dict[int, LayerView] = {}
            tiles = []
            for channel, its_rows, its_drives in zip(channels, rows, drives, strict=True):
                for rank, (row, drive) in enumerate(zip(its_rows, its_drives, strict=True)):
                    if row < 0:
                        texts = (f"ch {channel}", "no sample responds") if rank == 0 else ()
                        tiles.append(blank_tile(width, *texts))
                        continue
                    if row not in views:
                        views[int(row)] = layer_view(layer, int(row))
                    tiles.append(self.tile(archive, views[int(row)], int(channel), row, drive))
            if not tiles:
                continue
            how = f"{self.by} of the map first" if len(layer.entry.axes) > 1 else "value first"
            blanks = " · blank: at 0, or the same in all" if (rows < 0).any() else ""
            if self._marks_peak(layer.entry):
                how += " (ring)"
            if "query" in layer.entry.axes:
                how = f"{self.by} of all weights first, maps: attention {query_text(layer.entry)}"
            chosen = "as given" if self.channels else "that peak most above their mean"
            yield Picture(
                layer=layer.name,
                title=f"top samples of {layer.alias}",
                drawing=compose(
                    tiles,
                    rows.shape[1],
                    caption=f"{layer.alias} · top samples · {archive.manifest.model_title}",
                    note=f"channels {chosen} · largest {how}{blanks} · {self.colormap}, "
                    "range per map",
                    titles=self.titles,
                ),
            )

    def _outstanding(self, layer: StoredLayer) -> Array:
        figures = layer.statistics
        spread = np.where(figures["std"] > 0, figures["std"], np.inf)
        score = np.nan_to_num((figures["max"] - figures["mean"]) / spread, nan=-np.inf)
        return np.sort(np.argsort(-score, kind="stable")[: self.count])

    def tile(
        self, archive: Archive, view: LayerView, channel: int, row: int, drive: float,
        shared: tuple[float, float] | None = None,
    ) -> Tile:  # fmt: skip
        """Return a sample's photo with a channel's map over it, and `drive` in its title.

        `shared` is the colour range; None uses the map's own range.
        """
        image = input_image(archive, int(row))
        maps = attention_maps(view)
        if maps and not view.vector:
            under = dimmed(image) if is_attention(view) else image
            ring = self._marks_peak(view)
            rgb = self._laid_over(maps.maps[channel], under, shared, ring=ring)
        else:
            rgb = fit(image, self.tile_size)
        sample = archive.samples[int(row)]
        label = f" · {sample.label_name}" if sample.label_name else ""
        note = f"{one_line(sample.id)}{label}"
        return Tile(pixels=rgb, title=f"ch {channel} · {drive:.3g}", note=note)

    def _marks_peak(self, layer: LayerEntry | LayerView) -> bool:
        """Return whether a sample's rank is that of a place in the map that is drawn."""
        placed = layer.grid is not None or "height" in layer.axes
        return self.by == "max" and placed and not is_attention(layer)

    def _laid_over(
        self, values: Array, image: Array, shared: tuple[float, float] | None, *, ring: bool
    ) -> Array:
        """Return the shown part of a photo with a map over it, and a ring around its peak."""
        height, width = image.shape[:2]
        unit = normalize(values, *(shared or limits(values)), self.scale)
        rgb = laid_over(unit, image, self.opacity, self.colormap)
        finite = np.where(np.isfinite(values), values, -np.inf)
        place = np.unravel_index(int(finite.argmax()), values.shape)
        y, x = ((i + 0.5) / size for i, size in zip(place, values.shape, strict=True))
        top, bottom = _window(y, height, self.crop)
        left, right = _window(x, width, self.crop)
        shown = fit(rgb[top:bottom, left:right], self.tile_size).copy()
        if ring and (values < finite.max()).any():
            peak = (y * height - top) / (bottom - top), (x * width - left) / (right - left)
            _ring(shown, *peak)
        return shown


def dimmed(image: Array) -> Array:
    """Return an image in dark grey, so that all colours over it are the map's."""
    return np.rint(np.repeat(image @ _DIMMED, 3, axis=-1)).astype(np.uint8)


def laid_over(unit: Array, image: Array, opacity: float, colormap: str) -> Array:
    """Return an image with a map of values in 0..1 resized over it, transparent at 0 and NaN and
    with `opacity` at 1.
    """
    height, width = image.shape[:2]
    small = Image.fromarray(np.nan_to_num(unit))
    large = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
    alpha = (opacity * large)[..., None]
    return np.rint(alpha * colorize(large, colormap) + (1 - alpha) * image).astype(np.uint8)


def top_rows(
    layer: StoredLayer, channels: Array, count: int, by: Literal["max", "mean"]
) -> tuple[Array, Array]:
    """Return the rows that activate each channel most and their values, each `(channel, sample)`.

    Sorted from the largest; ties keep the archive's order. Skipped samples, samples without a
    finite value and samples that do not respond (see `responds`) are left out; missing rows are -1.
    """
    blocks = [
        layer.per_sample(f"sample_{by}", start, min(start + _BLOCK_ROWS, len(layer)))[:, channels]
        for start in range(0, len(layer), _BLOCK_ROWS)
    ]
    values = np.concatenate(blocks).T
    finite = np.isfinite(values)
    number = finite.sum(axis=1)
    low = np.where(finite, values, np.inf).min(axis=1)
    values = np.where(finite, values, -np.inf)
    rows = np.argsort(-values, axis=1, kind="stable")[:, : min(count, int(number.max()))]
    drives = np.take_along_axis(values, rows, axis=1)
    constant = (low == values.max(axis=1)) & (number > 1)
    rows[~np.isfinite(drives) | ~responds(drives, constant[:, None])] = -1
    return rows, drives


def responds(drives: Array, constant: Array | bool) -> Array:
    """Return whether each sample activates a channel: its value is not 0, and not all samples have
    the same value (`constant`).
    """
    return np.asarray((drives != 0) & ~np.asarray(constant))


def _ring(rgb: Array, y: float, x: float) -> None:
    """Draw a white ring with dark edges around a point, whose coordinates are 0..1."""
    height, width = rgb.shape[:2]
    rows, columns = np.ogrid[:height, :width]
    radius = _RING * max(height, width)
    off = np.abs(np.hypot(rows + 0.5 - y * height, columns + 0.5 - x * width) - radius)
    rgb[off < 1.6] = 0
    rgb[off < 0.8] = 255


def _window(centre: float, size: int, part: float) -> tuple[int, int]:
    length = max(1, round(size * part))
    start = min(max(0, round(centre * size - length / 2)), size - length)
    return start, start + length
