"""Positions: one place of a layer's maps, and the places of the dataset that are most like it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.explorer.collection import NotFound
from pipeline.rendering.views import LayerView, layer_view

_BLOCK = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Positions most like one, by cosine, so far.

    Attributes:
        done, total: samples that were read, and all.
        rows, y, x: of the positions, `(position,)`, the most alike first.
        cosine: -1..1.
    """

    done: int
    total: int
    rows: Array
    y: Array
    x: Array
    cosine: Array


def vector_at(view: LayerView, y: int, x: int) -> Array:
    """Return the values of all channels at a place, `(channel,)` float32."""
    height, width = view.maps.shape[1:]
    if not (0 <= y < height and 0 <= x < width):
        raise NotFound(f"no position {y}, {x} in maps of {height}×{width}")
    return np.asarray(view.maps[:, y, x])


def nearest(
    layer: StoredLayer, rows: Array, vector: Array, count: int, *, one_each: bool,
    leave_out: tuple[int, int, int] | None = None,
) -> Iterator[Nearest]:  # fmt: skip
    """Search all positions of samples, block by block, and yield the best `count` so far after
    each.

    Exact: every position is compared, but for `leave_out` (row, y, x). Those without a finite
    vector, or of length 0, are left out; equal ones stand in the archive's order.
    """
    unit = vector.astype(np.float64)
    unit = unit / max(float(np.linalg.norm(unit)), np.finfo(np.float64).tiny)
    found = np.empty((0, 4))
    step = max(1, _BLOCK // layer.entry.sample_bytes)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        cosines = [_cosines(layer_view(layer, row).maps, unit) for row in part.tolist()]
        block = [
            _best(row, each, count, one_each, leave_out)
            for row, each in zip(part, cosines, strict=True)
        ]
        found = np.concatenate([found, *block])
        found = found[np.argsort(-found[:, 3], kind="stable")[:count]]
        where = found[:, :3].astype(np.int64).T
        yield Nearest(
            done=min(start + step, len(rows)), total=len(rows), rows=where[0], y=where[1],
            x=where[2], cosine=found[:, 3],
        )  # fmt: skip


def _cosines(maps: Array, unit: Array) -> Array:
    """Return the cosine at every place, `(height, width)` float64; -inf where there is none."""
    wide = maps.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.sqrt(np.square(wide).sum(axis=0))
        product = np.tensordot(unit, wide, 1)
        good = np.isfinite(product) & np.isfinite(length) & (length > 0)
        none = np.full(length.shape, -np.inf)
        return np.asarray(np.divide(product, length, out=none, where=good))


def _best(
    row: int, cosines: Array, count: int, one_each: bool, leave_out: tuple[int, int, int] | None
) -> Array:
    """Return the best places of a sample as rows of row, y, x, cosine, in their order."""
    if leave_out and leave_out[0] == row:
        cosines[leave_out[1:]] = -np.inf
    flat = cosines.ravel()
    places = np.argsort(-flat, kind="stable")[: 1 if one_each else count]
    places = np.sort(places[np.isfinite(flat[places])])
    y, x = np.unravel_index(places, cosines.shape)
    return np.stack([np.full(len(places), row), y, x, flat[places]], axis=1).astype(np.float64)
