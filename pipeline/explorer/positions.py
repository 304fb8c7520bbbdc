"""Nearest-neighbour search over spatial positions by cosine similarity."""

from collections.abc import Iterator

import numpy as np

from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.explorer.collection import NotFound
from pipeline.rendering.attention_maps import misfit
from pipeline.rendering.views import LayerView, layer_view

_BLOCK = 8 * 2**20


def position_grid(entry: LayerEntry) -> tuple[int, int] | None:
    """Return height and width of the positions of an image: of maps, or of attention's queries."""
    return entry.spatial_shape or (None if misfit(entry, (0, 0)) else entry.grid)


def vector_at(view: LayerView, y: int, x: int) -> Array:
    """Return the values of all channels at a position, `(channel,)` float32."""
    height, width = view.maps.shape[1:]
    if not (0 <= y < height and 0 <= x < width):
        raise NotFound(f"no position {y}, {x} in maps of {height}×{width}")
    return np.asarray(view.maps[:, y, x])


def nearest(
    layer: StoredLayer, rows: Array, vector: Array, count: int, *, one_each: bool,
    leave_out: tuple[int, int, int] | None = None,
) -> Iterator[tuple[int, Array]]:  # fmt: skip
    """Search all positions of samples; yield the number of samples read and the best so far.

    The best `count` are `(position, 4)` float64, nearest first: sample row, y, x, cosine. The
    search is exact. The position `leave_out` (row, y, x) and vectors that are not finite or of
    length 0 are skipped; ties keep the archive's order.
    """
    unit = vector.astype(np.float64)
    unit = unit / max(float(np.linalg.norm(unit)), np.finfo(np.float64).tiny)
    best = np.empty((0, 4))
    step = max(1, _BLOCK // layer.entry.sample_bytes)
    for start in range(0, len(rows), step):
        block = [
            _best(row, _cosines(layer_view(layer, row).maps, unit), count, one_each, leave_out)
            for row in rows[start : start + step].tolist()
        ]
        best = np.concatenate([best, *block])
        best = best[np.argsort(-best[:, 3], kind="stable")[:count]]
        yield min(start + step, len(rows)), best


def _cosines(maps: Array, unit: Array) -> Array:
    """Return the cosine at every position, `(height, width)` float64; -inf where undefined."""
    wide = maps.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.sqrt(np.square(wide).sum(axis=0))
        product = np.tensordot(unit, wide, 1)
        good = np.isfinite(product) & np.isfinite(length) & (length > 0)
        undefined = np.full(length.shape, -np.inf)
        return np.asarray(np.divide(product, length, out=undefined, where=good))


def _best(
    row: int, cosines: Array, count: int, one_each: bool, leave_out: tuple[int, int, int] | None
) -> Array:
    """Return the best positions of a sample in map order, `(position, 4)`: row, y, x, cosine."""
    if leave_out and leave_out[0] == row:
        cosines[leave_out[1:]] = -np.inf
    flat = cosines.ravel()
    indices = np.argsort(-flat, kind="stable")[: 1 if one_each else count]
    indices = np.sort(indices[np.isfinite(flat[indices])])
    y, x = np.unravel_index(indices, cosines.shape)
    return np.stack([np.full(len(indices), row), y, x, flat[indices]], axis=1).astype(np.float64)
