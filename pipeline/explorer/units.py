"""Units: top samples, health, ranks and correlations of the channels of a layer."""

from dataclasses import dataclass

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.statistics import rounding_of_means
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.renderers.histogram import distribution
from pipeline.renderers.top_samples import responds

_READ_BYTES = 16 * 2**20
CORRELATED_OVER = 5000
"""Maximum number of evenly spaced samples for correlations."""
MOST_PAIRED = 8192
"""Maximum number of channels for a matrix of all pairs."""
_VALUES, _FEWEST = 2**25, 500


def saturated(archive_view: ArchiveView, layer: StoredLayer) -> tuple[Array, int]:
    """Return a mask of the channels of which more than half of the values lie in the top 1 % of
    their range, and the number of samples read: at most 200 or 16 MB, evenly spaced.
    """

    def make() -> tuple[Array, int]:
        rows = archive_view.spread(int(np.clip(_READ_BYTES // layer.entry.sample_bytes, 8, 200)))
        mask = np.zeros(layer.entry.channels, bool)
        mask[distribution(layer, rows.tolist(), 2).saturated] = True
        return mask, len(rows)

    return archive_view.results.get(("saturated", layer.name), make)


@dataclass(frozen=True, kw_only=True)
class UnitTopSamples:
    """Samples ordered by how strongly they drive a channel.

    Attributes:
        rows: rows of the samples, `(sample,)`.
        drives: maximum or mean of the channel's map, `(sample,)`.
        note: message about ties that are left out; empty without ties.
    """

    rows: Array
    drives: Array
    note: str


def driven(
    archive_view: ArchiveView, layer: StoredLayer, channel: int, by: str, count: int, *, most: bool
) -> UnitTopSamples:
    """Return the samples with the largest or smallest `max` or `mean` of a channel's map.

    Ties keep the archive's order. The largest exclude samples that do not respond
    (`top_samples.responds`).
    """
    values = archive_view.column(layer, f"sample_{by}", channel)
    finite = np.flatnonzero(~np.isnan(values))
    drives, total, note = values[finite], len(finite), ""
    if most:
        constant = total > 1 and drives.min() == drives.max()
        responding = finite[responds(drives, constant)]
        rows = responding[np.argsort(-values[responding], kind="stable")[:count]]
        if len(rows) < min(count, total):
            level = drives[0] if constant else 0
            note = f"{total - len(responding)} of {total} samples are at {level:.4g}"
    else:
        rows = finite[np.argsort(drives, kind="stable")[:count]]
        last = values[rows[-1:]]
        tied = int((drives == last).sum())
        if tied > int((values[rows] == last).sum()):
            note = f"{tied} of {total} samples are at {last[0]:.4g}: the first are shown"
    return UnitTopSamples(rows=rows, drives=values[rows], note=note)


def _standardised(archive_view: ArchiveView, layer: StoredLayer) -> Array:
    """Return channel means at mean 0 and length 1 over samples, `(sample, channel)`.

    NaN where a channel is constant.
    """

    def make() -> Array:
        rows = archive_view.spread(min(CORRELATED_OVER, at_once(layer)))
        values, _ = finite_means(archive_view, layer, rows)
        values -= values.mean(axis=0) if len(values) else 0
        length = np.sqrt(np.square(values).sum(axis=0))
        rounding = rounding_of_means(archive_view.statistics(layer)) * np.sqrt(len(values))
        length[length <= rounding] = np.nan
        values /= length
        return np.asarray(values)

    return archive_view.results.get(("standardised", layer.name), make)


def correlations(archive_view: ArchiveView, layer: StoredLayer) -> Array:
    """Return Pearson's correlation of channel means over samples, `(channel, channel)` float32.

    NaN where a channel is constant.
    """
    if layer.entry.channels > MOST_PAIRED:
        raise NotFound(
            f"the layer has {layer.entry.channels:,} channels; correlations are limited to "
            f"{MOST_PAIRED:,}"
        )
    values = _standardised(archive_view, layer)
    return np.asarray(values.T @ values, dtype=np.float32)


def finite_means(archive_view: ArchiveView, layer: StoredLayer, rows: Array) -> tuple[Array, Array]:
    """Return the mean of every channel over positions, `(row, channel)` float64, of the samples
    whose means are all finite, and their rows.
    """
    vector, dataset = layer.entry.vector, schema.activation_rows(layer.name)
    if not vector:
        dataset = schema.statistic(layer.name, "sample_mean")
    values = np.empty((len(rows), layer.entry.channels), layer.dtype if vector else np.float32)
    archive_view.archive.read_into(dataset, rows.tolist(), values)
    finite = np.isfinite(values).all(axis=1)
    return values[finite].astype(np.float64), rows[finite]


def at_once(layer: StoredLayer) -> int:
    """Return the number of samples per block of means: at least 500, fewer for wide layers."""
    return max(_FEWEST, _VALUES // layer.entry.channels)


def neighbours(
    archive_view: ArchiveView, layer: StoredLayer, channel: int, count: int
) -> tuple[list[tuple[int, float]], int]:
    """Return the most correlated channels, by magnitude, and the number of samples."""
    values = _standardised(archive_view, layer)
    correlation = values.T @ values[:, channel]
    correlation[channel] = np.nan
    order = np.argsort(-np.nan_to_num(np.abs(correlation), nan=-1), kind="stable")[:count]
    pairs = [(int(i), float(correlation[i])) for i in order if np.isfinite(correlation[i])]
    return pairs, len(values)


def places(figures: dict[str, Array], channel: int) -> dict[str, tuple[float, int]]:
    """Return a channel's statistics over the dataset, each with its rank; 1 is the largest."""
    ranks = {}
    for name in ("mean", "std", "min", "max", "zero_fraction"):
        column = figures[name]
        rank = 1 + int((column > column[channel]).sum())
        ranks[name] = (float(column[channel]), rank)
    return ranks
