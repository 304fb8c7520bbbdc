"""Block shuffle: the order in which an epoch reads rows and takes them from a reservoir.

Runs of consecutive rows (a few MiB) are read in random order and mixed in a reservoir: each new run
replaces random rows of it. The whole order is computed in advance from the seed, so every reader
gives the same order, even when it resumes in the middle of an epoch.

Source: the shuffle buffer of input pipelines (tf.data, WebDataset), applied to runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.archive.format.row_ranges import part_of

Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Step:
    """One run entering the reservoir: its rows, and their slots there.

    Attributes:
        leaving: whether the current rows of these slots leave first, in this order.
    """

    rows: Array
    slots: Array
    leaving: bool


@dataclass(frozen=True)
class EpochOrder:
    """The order of an epoch.

    Attributes:
        steps: runs in reading order.
        last: slots in the order in which the reservoir is emptied at the end.
        size: reservoir size in rows.
        rows: all rows in the order in which they leave the reservoir.
    """

    steps: Sequence[Step]
    last: Array
    size: int
    rows: Array


def block_shuffled(
    rows: Array, run: int, reservoir: int, seed: Sequence[int], part: tuple[int, int]
) -> EpochOrder:
    """Return the order of a block-shuffled epoch.

    Args:
        rows: all rows, ascending.
        run: maximum number of rows to read at once.
        reservoir: number of rows to mix, at least a run.
        seed: of the random generator.
        part: index and count of processes; the shares of the rows differ in size by at most one.
    """
    reservoir = max(reservoir, run)  # a run replaces an equal number of rows
    rng = np.random.default_rng(list(seed))
    runs = _runs(rows, run)
    order = rng.permutation(len(runs))
    share = _share([runs[i] for i in order], part_of(len(rows), *part))
    rng = np.random.default_rng([*seed, part[0]])
    reservoir_rows = np.empty(0, np.int64)
    steps: list[Step] = []
    leaving: list[Array] = []
    for run_rows in share:
        if len(reservoir_rows) < reservoir:
            slots = np.arange(len(reservoir_rows), len(reservoir_rows) + len(run_rows))
            reservoir_rows = np.concatenate([reservoir_rows, run_rows])
            steps.append(Step(run_rows, slots, False))
            continue
        slots = rng.choice(len(reservoir_rows), len(run_rows), replace=False)
        leaving.append(reservoir_rows[slots])
        reservoir_rows[slots] = run_rows
        steps.append(Step(run_rows, slots, True))
    last = rng.permutation(len(reservoir_rows))
    leaving.append(reservoir_rows[last])
    return EpochOrder(steps, last, len(reservoir_rows), np.concatenate(leaving))


def permuted(rows: Array, seed: Sequence[int], part: tuple[int, int], *, shuffle: bool) -> Array:
    """Return a share of the rows, uniformly permuted or in order."""
    order = np.random.default_rng(list(seed)).permutation(rows) if shuffle else rows
    return order[part_of(len(rows), *part)]


def _runs(rows: Array, size: int) -> list[Array]:
    """Split rows into runs of at most `size` consecutive rows.

    >>> [run.tolist() for run in _runs(np.array([0, 1, 2, 3, 5, 6]), 3)]
    [[0, 1, 2], [3], [5, 6]]
    """
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    runs = []
    for block in np.split(rows, breaks):
        runs += [block[start : start + size] for start in range(0, len(block), size)]
    return runs


def _share(runs: Sequence[Array], positions: range) -> list[Array]:
    """Return the runs restricted to a range of positions in their concatenation."""
    share, offset = [], 0
    for run in runs:
        rows = run[max(0, positions.start - offset) : max(0, positions.stop - offset)]
        if len(rows):
            share.append(rows)
        offset += len(run)
    return share
