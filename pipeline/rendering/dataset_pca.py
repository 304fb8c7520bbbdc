"""PCA over a dataset: one projection per layer from all samples, in bounded memory.

Two passes over the archive: one adds up mean and scatter, one finds the range of the scores. The
result is kept beside the pictures and read again by the next run.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import replacing
from pipeline.common.progress import Counter, Progress
from pipeline.rendering.file_names import layer_folders
from pipeline.rendering.projection import Projection, StreamingFit
from pipeline.rendering.views import layer_view


@dataclass(frozen=True, kw_only=True)
class DatasetProjection:
    """A layer's projection and the range of its scores over the dataset, `(component,)` each."""

    projection: Projection
    low: Array
    high: Array

    @property
    def nbytes(self) -> int:
        """Bytes of the components."""
        return int(self.projection.components.nbytes)


def fit_dataset(
    archive: Archive, folder: Path, components: int, *, positions: int, seed: int
) -> dict[str, DatasetProjection]:
    """Return layer → projection of every layer with positions; read from `folder`, or fitted now
    and kept there as `fit-<layer>.npz`.

    The fit is to `positions` of each sample, 0 for all, drawn by `seed` and the sample's row; the
    range is taken over all in any case.
    """
    layers = [layer for layer in archive.layers.values() if not layer.entry.vector]
    found = {}
    folders = layer_folders(archive.manifest.layers)
    rows = [sample.index for sample in archive.samples if not sample.error]
    missing = []
    for layer in layers:
        kept = _load(folder / f"fit-{folders[layer.name]}.npz")
        if kept is None:
            missing.append(layer)
        else:
            found[layer.name] = kept
    with Progress("fit", total=2 * len(rows) * len(missing), unit="activations") as progress:
        for layer in missing:
            found[layer.name] = fit_layer(layer, rows, components, positions, seed, progress)
            _save(folder / f"fit-{folders[layer.name]}.npz", found[layer.name])
    return {layer.name: found[layer.name] for layer in layers}


def fit_layer(
    layer: StoredLayer,
    rows: list[int],
    components: int,
    positions: int,
    seed: int,
    progress: Counter,
) -> DatasetProjection:
    """Fit one layer; see `fit_dataset`."""
    fit = StreamingFit(layer.entry.channels)
    for row, vectors in _vectors(layer, rows, progress):
        if 0 < positions < len(vectors):
            chance = np.random.default_rng([seed, row])
            vectors = vectors[np.sort(chance.choice(len(vectors), positions, replace=False))]
        fit.add(vectors)
    projection = fit.result(components)
    low, high = np.full(components, np.inf), np.full(components, -np.inf)
    for _, vectors in _vectors(layer, rows, progress):
        if len(vectors):
            scores = projection(vectors)
            low, high = np.minimum(low, scores.min(axis=0)), np.maximum(high, scores.max(axis=0))
    return DatasetProjection(projection=projection, low=low, high=high)


def _vectors(layer: StoredLayer, rows: list[int], progress: Counter) -> Iterator[tuple[int, Array]]:
    for row in rows:
        maps = layer_view(layer, row).maps
        vectors = maps.reshape(len(maps), -1).T
        yield row, vectors[np.isfinite(vectors).all(axis=1)]
        progress.advance(1)


def _save(path: Path, found: DatasetProjection) -> None:
    with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(found.projection), low=found.low, high=found.high)


def _load(path: Path) -> DatasetProjection | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            projection = Projection(kept["mean"], kept["components"], kept["explained"])
            return DatasetProjection(projection=projection, low=kept["low"], high=kept["high"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
