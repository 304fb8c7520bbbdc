"""PCA projection of an activation: each position's channel vector becomes 3 (or 1) scores, then a
colour.

Exact: solves the symmetric eigenvalue problem of channels × channels or positions × positions,
whichever is smaller.
Source: Jolliffe, Principal Component Analysis (2002), section 2-3; equal to `numpy.linalg.svd` of
the centred positions × channels matrix.

A projection of a dataset is fitted in two passes over the archive, in bounded memory: one for mean
and scatter, one for the range of the scores.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.linalg import eigh

from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import replacing
from pipeline.common.progress import Progress
from pipeline.rendering.file_names import layer_folders
from pipeline.rendering.views import layer_view


@dataclass(frozen=True)
class Projection:
    """A fitted PCA.

    Attributes:
        mean: `(channel,)` float64.
        components: `(component, channel)` float64, unit length; in each, the entry of largest
            magnitude is positive. Components beyond the rank of the data are zero.
        explained: `(component,)`, share of the total variance, 0..1.
    """

    mean: Array
    components: Array
    explained: Array

    def __call__(self, positions: Array) -> Array:
        """Return the scores `(position, component)` of vectors `(position, channel)`."""
        scores: Array = (positions.astype(np.float64) - self.mean) @ self.components.T
        return scores


def fit_project(positions: Array, components: int = 3) -> tuple[Projection, Array]:
    """Fit a PCA and return it with the scores `(position, component)` of the fitted vectors.

    The vectors `(position, channel)` are finite, with magnitudes below 1e150; a view of contiguous
    `(channel, position)` is fastest.
    """
    count, channels = positions.shape
    if count == 0:
        return StreamingFit(channels).result(components), np.zeros((0, components))
    # The square of any float32 fits into float64.
    centred = positions.T.astype(np.float64, order="C")
    mean = centred.mean(axis=1)
    centred -= mean[:, None]
    gram = centred @ centred.T if channels <= count else centred.T @ centred
    total = float(np.trace(gram))
    values, vectors = _largest(gram, components)
    rows = np.ascontiguousarray(vectors.T)
    if channels > count:
        rows = rows @ centred.T
    projection = _projection(mean, rows, values / total if total > 0 else 0 * values, components)
    return projection, (projection.components @ centred).T


class StreamingFit:
    """PCA over more positions than fit in memory: accumulates mean and scatter block by block.

    Source: Chan, Golub & LeVeque (1979), the update of mean and scatter by a block.
    """

    def __init__(self, channels: int) -> None:
        """Start without data; memory is `(channel, channel)` float64."""
        self._count = 0
        self._mean = np.zeros(channels)
        self._scatter = np.zeros((channels, channels))

    def add(self, positions: Array) -> None:
        """Add a block of vectors `(position, channel)`, finite."""
        count = len(positions)
        if count == 0:
            return
        mean = positions.mean(axis=0, dtype=np.float64)
        centred = positions.astype(np.float64) - mean
        shift = mean - self._mean
        total = self._count + count
        self._scatter += centred.T @ centred
        self._scatter += np.outer(shift, shift) * (self._count * count / total)
        self._mean += shift * (count / total)
        self._count = total

    def result(self, components: int = 3) -> Projection:
        """Return the PCA of all added vectors."""
        total = float(np.trace(self._scatter))
        if not total > 0:
            return _projection(self._mean, self._scatter[:0], np.empty(0), components)
        values, vectors = _largest(self._scatter / total, components)
        return _projection(self._mean, vectors.T, values, components)


def _largest(gram: Array, components: int) -> tuple[Array, Array]:
    """Return the largest eigenvalues in descending order and their eigenvectors as columns."""
    keep = min(components, len(gram))
    values, vectors = eigh(
        gram, subset_by_index=(len(gram) - keep, len(gram) - 1), check_finite=False
    )
    return values[::-1], vectors[:, ::-1]


def _projection(mean: Array, rows: Array, shares: Array, components: int) -> Projection:
    """Return a PCA from directions `(component, channel)`: unit length, fixed signs."""
    directions = np.zeros((components, len(mean)))
    explained = np.zeros(components)
    lengths = np.linalg.norm(rows, axis=1)
    for i in np.flatnonzero(shares > 1e-12):
        row = rows[i] / lengths[i]
        directions[i] = row if row[np.argmax(np.abs(row))] > 0 else -row
        explained[i] = shares[i]
    return Projection(mean, directions, explained)


def project_colors(scores: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Return finite scores `(position, component)` scaled per component to 0..255, uint8.

    `low` and `high`, `(component,)`, map to 0 and 255; scores outside are clipped. None uses the
    range of these scores. A component with an empty range maps to 0.
    """
    if not len(scores):
        return scores.astype(np.uint8)
    low = scores.min(axis=0) if low is None else low
    high = scores.max(axis=0) if high is None else high
    span = np.where(high > low, high - low, 1)
    colors: Array = np.rint(np.clip((scores - low) / span, 0, 1) * 255).astype(np.uint8)
    return colors


@dataclass(frozen=True)
class DatasetProjection(Projection):
    """A layer's projection and the range of its scores over the dataset, `(component,)` each."""

    low: Array
    high: Array


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
            with (
                replacing(files[layer.name], durable=False) as temporary,
                temporary.open("wb") as file,
            ):
                np.savez(file, **vars(fitted))
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
    return DatasetProjection(**vars(projection), low=low, high=high)


def _vectors(
    layer: StoredLayer, rows: list[int], progress: Progress | None
) -> Iterator[tuple[int, Array]]:
    for row in rows:
        maps = layer_view(layer, row).maps
        vectors = maps.reshape(len(maps), -1).T
        yield row, vectors[np.isfinite(vectors).all(axis=1)]
        if progress:
            progress.advance(1)


def _load(path: Path) -> DatasetProjection | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return DatasetProjection(**arrays)
    except (OSError, TypeError, ValueError, zipfile.BadZipFile):
        return None
