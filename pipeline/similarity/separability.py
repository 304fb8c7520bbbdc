"""Separability of labels in a layer."""

import numpy as np

from pipeline.common.arrays import Array
from pipeline.similarity.cross_products import ROUNDING


def classes_of(labels: Array) -> tuple[Array | None, str]:
    """Return `Matched.labels` as classes of the samples, or None and the reason.

    The reason is empty if no sample has a label.
    """
    unlabelled = int((labels == -1).sum())
    if unlabelled == len(labels):
        return None, ""
    if unlabelled:
        return None, f"{unlabelled} of {len(labels)} samples have no label"
    if (np.bincount(labels) > 1).sum() < 2:
        return None, "fewer than two labels have two samples or more"
    return labels, ""


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
