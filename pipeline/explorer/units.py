"""Units: what drives a channel of a layer, how its values are spread, which others go with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.progress import NoProgress
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.renderers.histogram import distribution
from pipeline.renderers.top_samples import responds

_READ_BYTES = 16 * 2**20
CORRELATED_OVER = 5000
"""Samples that correlations are over, at most, evenly spaced."""
MOST_PAIRED = 8192
"""Channels that a matrix of all pairs is made of, at most."""
_VALUES, _FEWEST = 2**25, 500


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


def saturated(shelf: ArchiveView, layer: StoredLayer) -> Saturated:
    """Return which channels are saturated, from at most 200 samples or 16 MB, evenly spaced."""

    def make() -> Saturated:
        rows = shelf.spread(int(np.clip(_READ_BYTES // layer.entry.sample_bytes, 8, 200)))
        mask = np.zeros(layer.entry.channels, bool)
        mask[distribution(layer, rows.tolist(), 2, NoProgress()).saturated] = True
        return Saturated(mask=mask, samples=len(rows))

    return shelf.results.get(("saturated", layer.name), make)


@dataclass(frozen=True, kw_only=True)
class UnitTopSamples:
    """Samples by how much they drive a channel.

    Attributes:
        rows: of the samples, `(sample,)`.
        drives: the largest value, or the mean, of the channel's map in each.
        note: in words, which samples are left out as they tie; empty where none are.
    """

    rows: Array
    drives: Array
    note: str = ""


def driven(
    shelf: ArchiveView, layer: StoredLayer, channel: int, by: str, count: int, *, most: bool
) -> UnitTopSamples:
    """Return the samples that drive a channel most or least, by `max` or `mean` of its map; equal
    ones in the archive's order.

    Samples that do not respond (`top_samples.responds`) are not among those that drive it most.
    """
    values = shelf.column(layer, f"sample_{by}", channel)
    known = np.flatnonzero(~np.isnan(values))
    of = len(known)
    if most:
        drives = values[known]
        same = of > 1 and drives.min() == drives.max()
        responding = known[responds(drives, same)]
        rows = responding[np.argsort(-values[responding], kind="stable")[:count]]
        note = ""
        if len(rows) < min(count, of):
            level = drives[0] if same else 0
            note = f"{of - len(responding)} of {of} samples are at {level:.4g}"
        return UnitTopSamples(rows=rows, drives=values[rows], note=note)
    rows = known[np.argsort(values[known], kind="stable")[:count]]
    tied = int((values[known] == values[rows[-1]]).sum()) if of else 0
    note = ""
    if tied > int((values[rows] == values[rows[-1:]]).sum()):
        note = f"{tied} of {of} samples are at {values[rows[-1]]:.4g}: the first are shown"
    return UnitTopSamples(rows=rows, drives=values[rows], note=note)


def _standardised(shelf: ArchiveView, layer: StoredLayer) -> Array:
    """Return the channels' means over samples, brought to mean 0 and length 1, `(sample, channel)`;
    NaN where a channel is constant.
    """

    def make() -> Array:
        values = finite_means(layer, shelf.spread(min(CORRELATED_OVER, at_once(layer))))
        values -= values.mean(axis=0) if len(values) else 0
        length = np.sqrt(np.square(values).sum(axis=0))
        length[length == 0] = np.nan
        values /= length
        return np.asarray(values)

    return shelf.results.get(("standardised", layer.name), make)


def correlations(shelf: ArchiveView, layer: StoredLayer) -> Array:
    """Return Pearson's correlation of the channels' means over samples, `(channel, channel)`
    float32; NaN where a channel is constant.
    """
    if layer.entry.channels > MOST_PAIRED:
        raise NotFound(
            f"no matrix of all pairs of {layer.entry.channels:,} channels (up to {MOST_PAIRED:,})"
        )
    values = _standardised(shelf, layer)
    return np.asarray(values.T @ values, dtype=np.float32)


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


def finite_means(layer: StoredLayer, rows: Array) -> Array:
    """Return `means` of the samples of which all are finite."""
    values = means(layer, rows)
    return np.asarray(values[np.isfinite(values).all(axis=1)])


def at_once(layer: StoredLayer) -> int:
    """Return of how many samples the means are held at once: fewer of wide layers, 500 at least."""
    return max(_FEWEST, _VALUES // layer.entry.channels)


def neighbours(
    shelf: ArchiveView, layer: StoredLayer, channel: int, count: int
) -> tuple[list[tuple[int, float]], int]:
    """Return the channels whose means go most with a channel's, with the correlation, strongest
    first by magnitude, and over how many samples.
    """
    values = _standardised(shelf, layer)
    with_it = values.T @ values[:, channel]
    with_it[channel] = np.nan
    order = np.argsort(-np.nan_to_num(np.abs(with_it), nan=-1), kind="stable")[:count]
    return [(int(i), float(with_it[i])) for i in order if np.isfinite(with_it[i])], len(values)


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
