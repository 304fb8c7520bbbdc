"""Dataset map: samples at the first two principal components of a layer."""

from dataclasses import dataclass

import numpy as np

from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.explorer.collection import ArchiveView
from pipeline.explorer.units import MOST_PAIRED, at_once, finite_means
from pipeline.rendering.projection import Projection, StreamingFit, fit_project

FITTED_TO = 20000
"""Maximum number of evenly spaced samples that the projection is fitted to."""
_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class DatasetMap:
    """Coordinates of samples.

    Attributes:
        rows: rows of the samples whose means are finite, `(sample,)`.
        scores: `(sample, component)` float32, two components.
        explained: explained variance ratio, `(component,)`, 0..1.
        fitted_to: number of samples of the fit.
    """

    rows: Array
    scores: Array
    explained: Array
    fitted_to: int


def dataset_map(archive_view: ArchiveView, layer: StoredLayer) -> DatasetMap:
    """Return a PCA of the channel means over positions, for all samples that were not skipped."""

    def make() -> DatasetMap:
        rows, step = archive_view.stored, min(_BLOCK, at_once(layer))
        projection, count = _fitted(archive_view, layer, step)
        finite_rows, scores = [np.empty(0, np.int64)], [np.empty((0, 2), np.float32)]
        for start in range(0, len(rows), step):
            values, finite = finite_means(archive_view, layer, rows[start : start + step])
            finite_rows.append(finite)
            scores.append(projection(values).astype(np.float32))
        return DatasetMap(
            rows=np.concatenate(finite_rows),
            scores=np.concatenate(scores),
            explained=projection.explained,
            fitted_to=count,
        )

    return archive_view.results.get(("map", layer.name), make)


def _fitted(archive_view: ArchiveView, layer: StoredLayer, step: int) -> tuple[Projection, int]:
    """Return a PCA of samples, read `step` at a time, and the number of samples.

    For very wide layers one step of samples is fitted through its Gram matrix; the covariance of
    all channels would need gigabytes.
    """
    rows = archive_view.spread(FITTED_TO)
    if layer.entry.channels > MOST_PAIRED:
        values, _ = finite_means(archive_view, layer, rows[:: max(1, -(-len(rows) // step))])
        return fit_project(values, 2)[0], len(values)
    streaming, count = StreamingFit(layer.entry.channels), 0
    for start in range(0, len(rows), step):
        values, _ = finite_means(archive_view, layer, rows[start : start + step])
        streaming.add(values)
        count += len(values)
    return streaming.result(2), count
