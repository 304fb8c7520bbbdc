"""Units: what drives a channel of a layer, how its values are spread, which others go with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.archive.stored_layer import StoredLayer
from pipeline.foundation.arrays import Array
from pipeline.foundation.progress import NoProgress
from pipeline.gallery.explorer.collection import Shelf
from pipeline.renderers.histogram import distribution

_READ_BYTES = 16 * 2**20
CORRELATED_OVER = 5000
"""Samples that correlations are over, at most, evenly spaced."""


@dataclass(frozen=True, kw_only=True)
class Saturated:
    """Channels of which more than half of the values lie in the top 1 % of their range.

    Attributes:
        mask: `(channel,)` boolean.
        samples: how many were read.
    """

    mask: Array
    samples: int

    @property
    def nbytes(self) -> int:
        """Bytes of the mask."""
        return int(self.mask.nbytes)


def saturated(shelf: Shelf, layer: StoredLayer) -> Saturated:
    """Return which channels are saturated, from at most 200 samples or 16 MB, evenly spaced."""

    def make() -> Saturated:
        rows = shelf.spread(int(np.clip(_READ_BYTES // layer.entry.sample_bytes, 8, 200)))
        mask = np.zeros(layer.entry.channels, bool)
        mask[distribution(layer, rows.tolist(), 2, NoProgress()).saturated] = True
        return Saturated(mask=mask, samples=len(rows))

    found: Saturated = shelf.results.get(("saturated", layer.name), make)
    return found


@dataclass(frozen=True, kw_only=True)
class Driven:
    """Samples by how much they drive a channel.

    Attributes:
        rows: of the samples, `(sample,)`.
        drives: the largest value, or the mean, of the channel's map in each.
    """

    rows: Array
    drives: Array


def driven(
    shelf: Shelf, layer: StoredLayer, channel: int, by: str, count: int, *, most: bool
) -> Driven:
    """Return the samples that drive a channel most or least, equal ones in the archive's order.

    Args:
        shelf: of the layer.
        layer: which.
        channel: of the layer.
        by: `max` or `mean` of the channel's map.
        count: how many.
        most: the most, not the least.
    """
    values = shelf.column(layer, f"sample_{by}", channel)
    known = np.flatnonzero(~np.isnan(values))
    signed = -values[known] if most else values[known]
    rows = known[np.argsort(signed, kind="stable")[:count]]
    return Driven(rows=rows, drives=values[rows])


@dataclass(frozen=True, kw_only=True)
class Correlations:
    """Pearson's correlation of the channels' means over samples.

    Attributes:
        matrix: `(channel, channel)` float32; NaN where a channel is constant.
        samples: how many it is over.
    """

    matrix: Array
    samples: int

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return int(self.matrix.nbytes)


def correlations(shelf: Shelf, layer: StoredLayer) -> Correlations:
    """Return how the channels of a layer go together."""

    def make() -> Correlations:
        values = means(layer, shelf.spread(CORRELATED_OVER))
        values = values[np.isfinite(values).all(axis=1)]
        centred = values - values.mean(axis=0) if len(values) else values
        length = np.sqrt(np.square(centred).sum(axis=0))
        unit = np.divide(centred, length, out=np.full_like(centred, np.nan), where=length > 0)
        return Correlations(matrix=(unit.T @ unit).astype(np.float32), samples=len(values))

    found: Correlations = shelf.results.get(("correlations", layer.name), make)
    return found


def means(layer: StoredLayer, rows: Array) -> Array:
    """Return the mean of every channel over positions, `(row, channel)` float64, in blocks."""
    out = np.empty((len(rows), layer.entry.channels))
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024]
        first, stop = int(part[0]), int(part[-1]) + 1
        if stop - first <= 4 * len(part):
            out[start : start + len(part)] = layer.per_sample("sample_mean", first, stop)[
                part - first
            ]
        else:
            for place, row in enumerate(part.tolist(), start):
                out[place] = layer.per_sample("sample_mean", row, row + 1)[0]
    return out


def neighbours(
    shelf: Shelf, layer: StoredLayer, channel: int, count: int
) -> tuple[list[tuple[int, float]], int]:
    """Return the channels whose means go most with a channel's, with the correlation, strongest
    first by magnitude, and over how many samples.
    """
    found = correlations(shelf, layer)
    with_it = found.matrix[channel].astype(np.float64)
    with_it[channel] = np.nan
    order = np.argsort(-np.nan_to_num(np.abs(with_it), nan=-1), kind="stable")[:count]
    return [(int(i), float(with_it[i])) for i in order if np.isfinite(with_it[i])], found.samples


def places(figures: dict[str, Array], channel: int) -> dict[str, tuple[float, int]]:
    """Return a channel's figures over the dataset, each with its rank; 1 is the largest."""
    found = {}
    for name in ("mean", "std", "min", "max", "zero_fraction"):
        column = figures[name]
        rank = 1 + int((column > column[channel]).sum())
        found[name] = (float(column[channel]), rank)
    return found


def health(figures: dict[str, Array]) -> dict[str, Array]:
    """Return channels that are dead (all values equal, or none finite) or never zero and positive,
    as booleans.
    """
    low, high = figures["min"], figures["max"]
    known = np.isfinite(low) & np.isfinite(high)
    dead = ~known | (low == high)
    return {"dead": dead, "always_on": ~dead & (low > 0)}
