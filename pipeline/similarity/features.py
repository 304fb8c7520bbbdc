"""Features: a layer's activations as rows of numbers, as they are compared with other layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.errors import LayerError

Grid = tuple[int, int]


class Over(StrEnum):
    """What becomes of a layer's positions.

    MEAN: the mean over them, without prefix tokens: one row a sample, a feature a channel.
    FLATTEN: one row a sample, a feature for every channel at every position (prefix tokens too);
        what it measures depends on how positions correspond.
    POSITIONS: a row for every position of every sample, a feature a channel; all layers have the
        same grid then, larger ones are averaged down to it.
    """

    MEAN = "mean"
    FLATTEN = "flatten"
    POSITIONS = "positions"


@dataclass(frozen=True, kw_only=True)
class LayerFeatures:
    """What reads a layer as `(row, feature)` float64.

    Attributes:
        archive: open; which one of those compared is `number`.
        layer: of that archive.
        over: see `Over`.
        grid: with `Over.POSITIONS`, the one that all layers are brought to.
    """

    archive: Archive
    number: int
    layer: StoredLayer
    over: Over
    grid: Grid | None = None

    @property
    def width(self) -> int:
        """Number of features."""
        entry = self.layer.entry
        if self.over is Over.FLATTEN:
            return int(np.prod(entry.shape))
        return entry.channels

    @property
    def rows_per_sample(self) -> int:
        """Rows that every sample has, one but with `Over.POSITIONS`."""
        return self.grid[0] * self.grid[1] if self.grid else 1

    @property
    def rows_are(self) -> str:
        """What a row is of, in words."""
        entry = self.layer.entry
        if self.over is Over.POSITIONS:
            return "positions as rows"
        if entry.vector:
            if entry.positions == "class token":
                return "class tokens"
            words = {"spatial_mean": "means over positions", "spatial_max": "maxima over positions"}
            return words.get(entry.reduction, "vectors")
        return "flattened maps" if self.over is Over.FLATTEN else "means over positions"

    @property
    def read_bytes(self) -> int:
        """Bytes that reading one sample takes."""
        return 4 * self.layer.entry.channels if self._pooled else self.layer.entry.sample_bytes

    @cached_property
    def _pooled(self) -> bool:
        """Whether the archive has the means already: they leave out values that are not finite."""
        if self.over is not Over.MEAN or self.layer.entry.vector:
            return False
        return not self.layer.statistics["nonfinite_count"].any()

    @cached_property
    def shift(self) -> Array:
        """Mean of every channel over the archive, `(channel,)`; 0 where there is none."""
        return np.nan_to_num(self.layer.statistics["mean"], nan=0, posinf=0, neginf=0)

    def read(self, rows: Array, *, centred: bool = True, out: Array | None = None) -> Array:
        """Return samples as rows of features, `(row, feature)` float64.

        Args:
            rows: numbers of samples in the archive.
            centred: take away the mean of every channel over the archive, which changes no measure
                but RSA and saves digits.
            out: where they are written, if anywhere: `(row, feature)` float64.
        """
        with np.errstate(invalid="ignore"):  # what is not finite stays so
            found = self._read(rows, centred, out)
        if out is not None and found is not out:
            out[...] = found
        return found

    def _read(self, rows: Array, centred: bool, out: Array | None) -> Array:
        values = self._stored(rows)
        entry = self.layer.entry
        shift = self.shift if centred else np.zeros(entry.channels)
        axis = 1 if self._pooled else entry.channel_axis
        vectors = self._pooled or entry.vector
        by_channel = np.subtract(
            np.moveaxis(values, axis, -1), shift, out=out if vectors else None, dtype=np.float64
        )
        if vectors:
            return by_channel
        if self.over is Over.FLATTEN:
            return np.asarray(by_channel.reshape(len(values), -1))
        maps = by_channel
        if "token" in entry.axes:
            maps = maps[:, entry.prefix_tokens :]
        if self.over is Over.MEAN:
            return np.asarray(maps.reshape(len(maps), -1, entry.channels).mean(axis=1))
        height, width = entry.places or (0, 0)
        maps = maps.reshape(len(maps), height, width, entry.channels)
        assert self.grid is not None
        return np.asarray(averaged(maps, self.grid).reshape(-1, entry.channels))

    def _stored(self, rows: Array) -> Array:
        """Return what the archive has of samples, as it is stored."""
        entry = self.layer.entry
        name, shape, dtype = schema.activation_rows(entry.name), entry.shape, self.layer.dtype
        if self._pooled:
            name, shape = schema.statistic(entry.name, "sample_mean"), (entry.channels,)
            dtype = np.dtype("float32")
        if len(rows) and (np.diff(rows) == 1).all():
            return self.archive.read_rows(name, int(rows[0]), int(rows[-1]) + 1)
        out = np.empty((len(rows), *shape), dtype)
        self.archive.read_into(name, rows.tolist(), out)
        return out


def features_of(archives: Sequence[Archive], over: Over) -> list[LayerFeatures]:
    """Return what reads every layer of every archive, in their order."""
    found = [
        LayerFeatures(archive=archive, number=number, layer=layer, over=over)
        for number, archive in enumerate(archives)
        for layer in archive.layers.values()
    ]
    if over is not Over.POSITIONS:
        return found
    grids = [_positions(each.layer) for each in found]
    common = min(height for height, _ in grids), min(width for _, width in grids)
    for each, grid in zip(found, grids, strict=True):
        if grid != common and each.layer.entry.grid is None and "token" in each.layer.entry.axes:
            raise LayerError(
                f"{each.layer.name}: its tokens have no grid that could be averaged down to "
                f"{common[0]}×{common[1]}; compare layers of one size, or with --over mean"
            )
    return [replace(each, grid=common) for each in found]


def _positions(layer: StoredLayer) -> Grid:
    grid = layer.entry.places
    if grid is None:
        why = "its positions were drawn" if layer.entry.drawn else "it has no positions"
        raise LayerError(f"{layer.name}: {why}; leave it out with --layers, or use --over mean")
    return grid


def averaged(maps: Array, grid: Grid) -> Array:
    """Return maps `(sample, height, width, channel)` brought to a smaller grid.

    Every cell is the mean of the positions that it covers, cells overlap where the sizes do not
    divide, as in torch's `adaptive_avg_pool2d`.
    """
    if maps.shape[1:3] == grid:
        return maps
    down, across = (_cover(maps.shape[axis], grid[axis - 1]) for axis in (1, 2))
    return np.asarray(np.einsum("ih,shwc,jw->sijc", down, maps, across, optimize=True))


def _cover(size: int, cells: int) -> Array:
    """Return how much of every position each cell takes, `(cell, position)`."""
    share = np.zeros((cells, size))
    for cell in range(cells):
        start, stop = cell * size // cells, -(-(cell + 1) * size // cells)
        share[cell, start:stop] = 1 / (stop - start)
    return share
