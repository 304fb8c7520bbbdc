"""The map of the dataset: samples placed by the first two principal components of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.explorer.collection import ArchiveView
from pipeline.explorer.units import MOST_PAIRED, at_once, finite_means, means
from pipeline.rendering.projection import Projection, StreamingFit, fit

FITTED_TO = 20000
"""Samples that the projection is fitted to, at most, evenly spaced; all of them are placed."""
_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class DatasetMap:
    """Where samples are.

    Attributes:
        rows: of the samples whose means are finite, `(sample,)`.
        scores: `(sample, component)` float32, two components.
        explained: `(component,)`, share of the variance, 0..1.
        fitted_to: how many samples.
    """

    rows: Array
    scores: Array
    explained: Array
    fitted_to: int

    @property
    def nbytes(self) -> int:
        """Bytes of rows and scores."""
        return int(self.rows.nbytes + self.scores.nbytes)


def dataset_map(shelf: ArchiveView, layer: StoredLayer) -> DatasetMap:
    """Return a PCA of the channels' means over positions, of all samples that were not skipped."""

    def make() -> DatasetMap:
        rows, step = shelf.stored, min(_BLOCK, at_once(layer))
        projection, count = _fitted(layer, shelf.spread(FITTED_TO), step)
        placed, scores = [], []
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            block = means(layer, part)
            good = np.isfinite(block).all(axis=1)
            placed.append(part[good])
            scores.append(projection(block[good]).astype(np.float32))
        return DatasetMap(
            rows=np.concatenate([*placed, np.empty(0, np.int64)]),
            scores=np.concatenate([*scores, np.empty((0, 2), np.float32)]),
            explained=projection.explained,
            fitted_to=count,
        )

    return shelf.results.get(("map", layer.name), make)


def _fitted(layer: StoredLayer, rows: Array, step: int) -> tuple[Projection, int]:
    """Return a PCA of samples, read so many at a time, and of how many it is.

    Of very wide layers only as many as one step takes, through the products of samples: those of
    all channels would need gigabytes.
    """
    if layer.entry.channels > MOST_PAIRED:
        values = finite_means(layer, rows[:: max(1, -(-len(rows) // step))])
        return fit(values, 2), len(values)
    streaming, count = StreamingFit(layer.entry.channels), 0
    for start in range(0, len(rows), step):
        values = finite_means(layer, rows[start : start + step])
        streaming.add(values)
        count += len(values)
    return streaming.result(2), count
