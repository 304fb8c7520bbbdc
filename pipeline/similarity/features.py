"""Features: a layer's activations as a matrix `(row, feature)` for comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.statistics import rounding_of_means
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.errors import LayerError

Grid = tuple[int, int]
_MEAN_OF = 64


Over = Literal["mean", "flatten", "positions"]
"""Treatment of a layer's positions; see `similarity`."""


@dataclass(frozen=True, kw_only=True)
class LayerFeatures:
    """Reader of a layer as `(row, feature)` float64."""

    archive: Archive
    number: int  # of the archive among the compared ones
    layer: StoredLayer
    over: Over
    grid: Grid | None = None  # common grid with `positions`

    def __post_init__(self) -> None:
        entry = self.layer.entry
        problem = ""
        if entry.drawn and self.over != "mean":  # each sample has its own
            problem = "its positions were drawn"
        elif entry.spatial_shape is None and self.over == "positions":
            problem = "it has no positions"
        if problem:
            raise LayerError(
                f"{entry.name}: {problem}; leave it out with --layers, or compare means, the "
                "default"
            )

    @property
    def width(self) -> int:
        """Number of features."""
        entry = self.layer.entry
        if self.over == "flatten":
            return int(np.prod(entry.shape))
        return entry.channels

    @property
    def rows_per_sample(self) -> int:
        """Rows per sample; more than one only with `positions`."""
        return self.grid[0] * self.grid[1] if self.grid else 1

    @property
    def rows_are(self) -> str:
        """Description of a row."""
        entry = self.layer.entry
        if self.over == "positions":
            return "positions as rows"
        if entry.vector:
            if entry.positions == "class token":
                return "class tokens"
            words = {
                "SpatialMean()": "means over positions",
                "SpatialMax()": "maxima over positions",
            }
            return words.get(entry.reduction, "vectors")
        return "flattened maps" if self.over == "flatten" else "means over positions"

    @property
    def read_bytes(self) -> int:
        """Bytes read per sample."""
        return 4 * self.layer.entry.channels if self._pooled else self.layer.entry.sample_bytes

    @cached_property
    def _pooled(self) -> bool:
        """Whether the stored means apply; they ignore non-finite values."""
        if self.over != "mean" or self.layer.entry.vector:
            return False
        return not self.layer.statistics["nonfinite_count"].any()

    @cached_property
    def shift(self) -> Array:
        """Mean of every channel over the archive, `(channel,)`; 0 where undefined.

        Of flattened maps it is the mean map of some samples, since positions differ, too.
        """
        if self.over == "flatten":
            spaced = np.unique(np.linspace(0, len(self.layer) - 1, _MEAN_OF, dtype=np.int64))
            maps = np.moveaxis(self._stored(spaced), self.layer.entry.channel_axis, -1)
            maps = maps[np.isfinite(maps.reshape(len(maps), -1)).all(axis=1)]
            if len(maps):
                return np.asarray(maps.mean(axis=0, dtype=np.float64))
        return np.nan_to_num(self.layer.statistics["mean"], nan=0, posinf=0, neginf=0)

    @cached_property
    def _level(self) -> Array:
        """Which channels have one mean in all samples but for rounding, as after an InstanceNorm,
        `(channel,)`.
        """
        squares = np.zeros(self.layer.entry.channels)
        for start, stop in self.archive.manifest.blocks(4 * self.layer.entry.channels):
            away = self.layer.per_sample("sample_mean", start, stop).astype(np.float64) - self.shift
            squares += np.nansum(np.square(away), axis=0)  # rows of skipped samples are NaN
        limit = np.square(rounding_of_means(self.layer.statistics)) * self.archive.stored.sum()
        return np.asarray(squares <= limit)

    @np.errstate(invalid="ignore")  # non-finite values propagate
    def read(self, rows: Array, *, centred: bool = True) -> Array:
        """Return samples as rows of features, `(row, feature)` float64.

        Args:
            rows: numbers of samples in the archive.
            centred: subtract `shift`, for precision; changes only RSA.
        """
        values = self._stored(rows)
        if self._pooled:
            values = np.where(self._level, self.shift, values)
        entry = self.layer.entry
        axis = 1 if self._pooled else entry.channel_axis
        shift = self.shift if centred else 0
        maps: Array = np.subtract(np.moveaxis(values, axis, -1), shift, dtype=np.float64)
        if self._pooled or entry.vector:
            return maps
        if self.over == "flatten":
            return maps.reshape(len(values), -1)
        if "token" in entry.axes:
            maps = maps[:, entry.prefix_tokens :]
        if self.over == "mean":
            return np.asarray(maps.reshape(len(maps), -1, entry.channels).mean(axis=1))
        height, width = entry.spatial_shape or (0, 0)
        maps = maps.reshape(len(maps), height, width, entry.channels)
        assert self.grid is not None
        return np.asarray(averaged(maps, self.grid).reshape(-1, entry.channels))

    def _stored(self, rows: Array) -> Array:
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
    """Return a reader for every layer of every archive, in order."""
    readers = [
        LayerFeatures(archive=archive, number=number, layer=layer, over=over)
        for number, archive in enumerate(archives)
        for layer in archive.layers.values()
    ]
    if over != "positions":
        return readers
    grids = [reader.layer.entry.spatial_shape or (0, 0) for reader in readers]
    common = min(height for height, _ in grids), min(width for _, width in grids)
    for reader, grid in zip(readers, grids, strict=True):
        entry = reader.layer.entry
        if grid != common and entry.grid is None and "token" in entry.axes:
            raise LayerError(
                f"{entry.name}: its tokens have no grid to average down to "
                f"{common[0]}×{common[1]}; compare layers of one size, or use --over mean"
            )
    return [replace(reader, grid=common) for reader in readers]


def averaged(maps: Array, grid: Grid) -> Array:
    """Return maps `(sample, height, width, channel)` averaged down to a smaller grid.

    Every cell is the mean of the positions that it covers. Cells overlap where sizes do not divide,
    as in torch's `adaptive_avg_pool2d`.
    """
    if maps.shape[1:3] == grid:
        return maps
    down, across = (_cover(maps.shape[axis], grid[axis - 1]) for axis in (1, 2))
    return np.asarray(np.einsum("ih,shwc,jw->sijc", down, maps, across, optimize=True))


def _cover(size: int, cells: int) -> Array:
    """Return the weight of every position in each cell, `(cell, position)`."""
    share = np.zeros((cells, size))
    for cell in range(cells):
        start, stop = cell * size // cells, -(-(cell + 1) * size // cells)
        share[cell, start:stop] = 1 / (stop - start)
    return share
