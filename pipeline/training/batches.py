"""Batches of a loader: content, and how they are cut from the reservoir and groups of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pipeline.common.arrays import Array
from pipeline.training.sample_source import Rows


class LoadedBatch(NamedTuple):
    """A batch, which owns its memory.

    Attributes:
        activations: layer → `(sample, …)`; with positions or tokens `(sample · vector, channel)`.
        labels: `(sample,)` or `(sample · vector,)` int64; -1: unlabelled.
        rows: rows of the samples in the archive, with the shape of `labels`.
        positions: layer → index of each vector in the layer's map or grid, row by row, or in its
            tokens without prefix tokens, with the shape of `labels`; for prefix tokens negative,
            from `-prefix_tokens` (the first) to -1. For archives made with `reduction=positions`
            also for whole activations, `(sample, token)`. Empty in all other cases.
    """

    activations: dict[str, Tensor]
    labels: Tensor
    rows: Tensor
    positions: dict[str, Tensor]

    @property
    def entropy(self) -> float:
        """Entropy of the vectors' samples, in nats; its exponential is their effective number."""
        counts = np.unique(self.rows, return_counts=True)[1]
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())


def cut(leaving: Sequence[Array], skipped: int, size: int) -> Iterator[list[tuple[Array, bool]]]:
    """Yield the slots leaving in each step, split at batch ends, and whether the batch is full.

    >>> [[(slots.tolist(), full) for slots, full in pieces]
    ...  for pieces in cut([np.arange(3), np.arange(4)], 1, 4)]
    [[([1, 2], False)], [([0, 1], True), ([2, 3], False)]]
    """
    passed = 0
    for slots in leaving:
        rest = slots[max(0, skipped - passed) :]
        position = max(passed, skipped)
        passed += len(slots)
        pieces = []
        while len(rest):
            room = size - (position - skipped) % size
            pieces.append((rest[:room], len(rest) >= room))
            position, rest = position + min(room, len(rest)), rest[room:]
        yield pieces


def divided(
    groups: Iterator[tuple[Array, Rows]], size: int, vectors: int
) -> Iterator[tuple[Array, Rows]]:
    """Yield batches with as many vectors as `size` samples from larger groups of samples.

    A batch takes the first vectors of all samples of its group, the next batch the second ones: its
    rows and values are `(size, vectors, ...)`. Groups of `size` samples are unchanged.

    >>> values = {"x": np.array([[0, 1], [10, 11]])}
    >>> [(rows.tolist(), batch["x"].tolist())
    ...  for rows, batch in divided(iter([(np.array([7, 8]), values)]), 1, 2)]
    [([[7, 8]], [[0, 10]]), ([[7, 8]], [[1, 11]])]
    """
    for rows, values in groups:
        if len(rows) <= size:
            yield rows, values
            continue
        for start in range(0, len(rows), size):
            order = np.arange(start * vectors, min(start + size, len(rows)) * vectors)
            index, sample = np.divmod(order.reshape(-1, vectors), len(rows))
            yield rows[sample], {key: array[sample, index] for key, array in values.items()}
