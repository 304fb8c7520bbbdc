"""PCA over a dataset: one projection per layer from all samples, in bounded memory.

The first pass over the archive accumulates mean and scatter, the second finds the range of the
scores. The result is stored next to the pictures and reused by the next run.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import replacing
from pipeline.common.progress import Progress
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
    """Return layer → projection for every layer with positions, read from `fit-<layer>.npz` in
    `folder`, or fitted and written there.

    The fit uses `positions` random positions of each sample (0: all), seeded by `seed` and the
    sample's row; the range always covers all positions.
    """
    layers = [layer for layer in archive.layers.values() if not layer.entry.vector]
    folders = layer_folders(archive.manifest.layers)
    files = {layer.name: folder / f"fit-{folders[layer.name]}.npz" for layer in layers}
    stored = {name: _load(file) for name, file in files.items()}
    rows = [sample.index for sample in archive.samples if not sample.error]
    missing = [layer for layer in layers if stored[layer.name] is None]
    with Progress("fit", total=2 * len(rows) * len(missing), unit="activations") as progress:
        for layer in missing:
            fitted = fit_layer(layer, rows, components, positions, seed, progress)
            stored[layer.name] = fitted
            _save(files[layer.name], fitted)
    return {name: fitted for name, fitted in stored.items() if fitted is not None}


def fit_layer(
    layer: StoredLayer,
    rows: list[int],
    components: int,
    positions: int,
    seed: int,
    progress: Progress | None = None,
) -> DatasetProjection:
    """Fit one layer; see `fit_dataset`."""
    fit = StreamingFit(layer.entry.channels)
    for row, vectors in _vectors(layer, rows, progress):
        if 0 < positions < len(vectors):
            generator = np.random.default_rng([seed, row])
            vectors = vectors[np.sort(generator.choice(len(vectors), positions, replace=False))]
        fit.add(vectors)
    projection = fit.result(components)
    low, high = np.full(components, np.inf), np.full(components, -np.inf)
    for _, vectors in _vectors(layer, rows, progress):
        if len(vectors):
            scores = projection(vectors)
            low, high = np.minimum(low, scores.min(axis=0)), np.maximum(high, scores.max(axis=0))
    return DatasetProjection(projection=projection, low=low, high=high)


def _vectors(
    layer: StoredLayer, rows: list[int], progress: Progress | None
) -> Iterator[tuple[int, Array]]:
    for row in rows:
        maps = layer_view(layer, row).maps
        vectors = maps.reshape(len(maps), -1).T
        yield row, vectors[np.isfinite(vectors).all(axis=1)]
        if progress:
            progress.advance(1)


def _save(path: Path, fitted: DatasetProjection) -> None:
    with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(fitted.projection), low=fitted.low, high=fitted.high)


def _load(path: Path) -> DatasetProjection | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            projection = Projection(arrays["mean"], arrays["components"], arrays["explained"])
            return DatasetProjection(projection=projection, low=arrays["low"], high=arrays["high"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
