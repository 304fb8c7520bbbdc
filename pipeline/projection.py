"""PCA projection of an activation: every position's channel vector becomes 3 (or 1) numbers, then a
colour.

Exact, through the symmetric eigenvalue problem of the smaller of channels × channels and positions
× positions.
Source: Jolliffe, Principal Component Analysis (2002), section 2-3; equal to `numpy.linalg.svd` of
the centred positions × channels matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Projection:
    """A fitted PCA.

    Attributes:
        mean: `(channel,)` float64.
        components: `(component, channel)` float64, unit length; in each, the entry of largest
            magnitude is positive. Components that the data do not have are zero.
        explained: `(component,)`, share of the total variance, 0..1.
    """

    mean: Array
    components: Array
    explained: Array

    def __call__(self, positions: Array) -> Array:
        """Return the scores `(position, component)` of vectors `(position, channel)`."""
        scores: Array = (positions.astype(np.float64) - self.mean) @ self.components.T
        return scores


def fit(positions: Array, components: int = 3) -> Projection:
    """Fit a PCA.

    Args:
        positions: `(position, channel)`, finite.
        components: how many to keep.
    """
    count, channels = positions.shape
    if count == 0:
        return Projection(
            np.zeros(channels), np.zeros((components, channels)), np.zeros(components)
        )
    mean = positions.mean(axis=0, dtype=np.float64)
    centred = positions.astype(np.float64) - mean
    total = float(np.einsum("ij,ij->", centred, centred))
    keep = min(components, channels, count)
    if total > 0:
        # Scaling to unit variance keeps squares of tiny or huge activations in range.
        centred /= np.sqrt(total)
    small = centred.T @ centred if channels <= count else centred @ centred.T
    values, vectors = eigh(
        small, subset_by_index=(len(small) - keep, len(small) - 1), check_finite=False
    )
    values, vectors = values[::-1], vectors[:, ::-1]
    rows = (vectors if channels <= count else centred.T @ vectors).T
    lengths = np.linalg.norm(rows, axis=1)
    found = np.zeros((components, channels))
    explained = np.zeros(components)
    real = values > 1e-12 if total > 0 else np.zeros(keep, dtype=bool)
    for i in np.flatnonzero(real):
        row = rows[i] / lengths[i]
        found[i] = row if row[np.argmax(np.abs(row))] > 0 else -row
        explained[i] = values[i]
    return Projection(mean, found, explained)


def project_colors(scores: Array) -> Array:
    """Return scores `(position, component)` scaled per component to 0..255 over the positions,
    uint8.

    A component without range becomes 0.
    """
    low, high = scores.min(axis=0), scores.max(axis=0)
    span = np.where(high > low, high - low, 1)
    colors: Array = np.rint((scores - low) / span * 255).astype(np.uint8)
    return colors
