"""The order of an epoch: which rows are read together, and which leave a reservoir together.

Rows that lie side by side are read in runs of some MiB, the runs in a random order, and mixed in a
reservoir: each run that comes in replaces rows drawn at random from it. All of it is decided
beforehand, from numbers alone, so that any reader gives the same order, also from the middle on.

Source: the shuffle buffer of input pipelines (tf.data, WebDataset), run by run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.archive.format.manifest import part_of

Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Step:
    """What happens when one run comes in.

    Attributes:
        rows: of the run, `(row,)`.
        slots: of the reservoir, where they go, `(row,)`.
        leaving: whether what is in these slots leaves before, in this order.
    """

    rows: Array
    slots: Array
    leaving: bool


@dataclass(frozen=True)
class EpochOrder:
    """An epoch.

    Attributes:
        steps: runs in the order that they are read in.
        last: slots in the order that the reservoir is emptied in.
        size: of the reservoir in rows.
        rows: every row, in the order that it leaves in.
    """

    steps: Sequence[Step]
    last: Array
    size: int
    rows: Array


def block_shuffled(
    rows: Array, run: int, reservoir: int, seed: Sequence[int], part: tuple[int, int]
) -> EpochOrder:
    """Return the order of an epoch that is shuffled in blocks.

    Args:
        rows: that there are, rising.
        run: how many rows are read at once, at most.
        reservoir: how many rows are mixed, a run at least.
        seed: of the draw.
        part: index and count: of several processes, each takes its share of the rows, which differ
            by one in number at most.
    """
    reservoir = max(reservoir, run)  # a run takes the place of as many rows
    chance = np.random.default_rng(list(seed))
    runs = _runs(rows, run)
    order = chance.permutation(len(runs))
    mine = _share([runs[i] for i in order], part_of(len(rows), *part))
    chance = np.random.default_rng([*seed, part[0]])
    held = np.empty(0, np.int64)
    steps: list[Step] = []
    leaving: list[Array] = []
    for some in mine:
        if len(held) < reservoir:
            slots = np.arange(len(held), len(held) + len(some))
            held = np.concatenate([held, some])
            steps.append(Step(some, slots, False))
            continue
        slots = chance.choice(len(held), len(some), replace=False)
        leaving.append(held[slots])
        held[slots] = some
        steps.append(Step(some, slots, True))
    last = chance.permutation(len(held))
    leaving.append(held[last])
    return EpochOrder(steps, last, len(held), np.concatenate(leaving))


def permuted(rows: Array, seed: Sequence[int], part: tuple[int, int], *, shuffle: bool) -> Array:
    """Return a share of the rows in an order of which all are as likely, or as they are."""
    order = np.random.default_rng(list(seed)).permutation(rows) if shuffle else rows
    return order[part_of(len(rows), *part)]


def _runs(rows: Array, size: int) -> list[Array]:
    """Return rows as runs of consecutive ones, of `size` at most.

    >>> [run.tolist() for run in _runs(np.array([0, 1, 2, 3, 5, 6]), 3)]
    [[0, 1, 2], [3], [5, 6]]
    """
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    runs = []
    for some in np.split(rows, breaks):
        runs += [some[start : start + size] for start in range(0, len(some), size)]
    return runs


def _share(runs: Sequence[Array], places: range) -> list[Array]:
    """Return what stands at some places of all runs' rows, one after another."""
    found, at = [], 0
    for run in runs:
        part = run[max(0, places.start - at) : max(0, places.stop - at)]
        if len(part):
            found.append(part)
        at += len(run)
    return found
