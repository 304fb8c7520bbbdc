"""Separability of labels in a layer."""

from dataclasses import dataclass

import numpy as np

from pipeline.common.arrays import Array
from pipeline.similarity.cross_products import ROUNDING


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The labels of samples as classes."""

    of: Array  # class of every sample, `(sample,)`, 0-based without gaps
    counts: Array  # samples of each class


def classes_of(labels: Array) -> tuple[Classes | None, str]:
    """Return the classes of samples, or None and the reason; -1 means no label.

    The reason is empty if no sample has a label.
    """
    unlabelled = int((labels == -1).sum())
    if unlabelled == len(labels):
        return None, ""
    if unlabelled:
        return None, f"{unlabelled} of {len(labels)} samples have no label"
    _, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if (counts > 1).sum() < 2:
        return None, "fewer than two labels have two samples or more"
    return Classes(of=of, counts=counts), ""


def right(
    distances: Array, class_distance: Array, row_class: Array, counts: Array, per_sample: int,
    norm: float,
) -> Array:  # fmt: skip
    """Return whether each row is nearest to the mean of its own class, `(row,)` boolean.

    Of equally near classes the first counts; rows of a class of one sample are never right.

    Args:
        distances: from each row to the mean of each class, squared, `(row, class)`.
        class_distance: from each row to the mean of its class without its sample, squared.
        row_class: class of each row, `(row,)`.
        counts: rows of each class, `(class,)`.
        per_sample: rows of a sample.
        norm: squared norm of a row, on average; distances that differ by its rounding are equal.
    """
    rows = np.arange(len(row_class))
    distances[:, counts == 0] = np.inf
    distances[rows, row_class] = np.where(counts[row_class] > per_sample, class_distance, np.inf)
    nearest = distances <= distances.min(axis=1, keepdims=True) + ROUNDING * norm
    return np.asarray((nearest.argmax(axis=1) == row_class) & (counts[row_class] > per_sample))


def counted(counts: Array, per_sample: int) -> int:
    """Return how many rows have another sample in their class."""
    return int(counts[counts > per_sample].sum())
