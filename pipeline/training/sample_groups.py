"""Groups of samples in memory: read in order or mixed in a reservoir, and divided into batches."""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.common.arrays import Array
from pipeline.training.block_shuffle import EpochOrder
from pipeline.training.sample_source import Rows, SampleSource


class SampleGroups:
    """Groups of `size` samples of a source, each with its row numbers."""

    def __init__(self, source: SampleSource, size: int) -> None:
        self._source, self._size = source, size
        self._held: Rows = {}

    def in_order(self, rows: Array, epoch: int) -> Iterator[tuple[Array, Rows]]:
        """Yield groups of rows in the given order."""
        groups = [rows[start : start + self._size] for start in range(0, len(rows), self._size)]
        for group, archive in zip(groups, self._source.fetched(groups), strict=True):
            values = self._source.new(len(group))
            self._source.read(group, values, np.arange(len(group)), epoch, archive)
            yield group, values

    def mixed(self, order: EpochOrder, skipped: int, epoch: int) -> Iterator[tuple[Array, Rows]]:
        """Yield groups from the reservoir, without the first `skipped` samples."""
        source = self._source
        remaining = np.zeros(1 + order.rows.max(initial=-1), bool)
        remaining[order.rows[skipped:]] = True
        reservoir, self._held = self._held, {}  # an overlapping epoch allocates its own memory
        if any(len(values) != order.size for values in reservoir.values()) or not reservoir:
            reservoir = {key: np.empty((order.size, *s), kind) for key, s, kind in source.kept()}
        inside = np.zeros(order.size, np.int64)
        leaving = [step.slots for step in order.steps if step.leaving] + [order.last]
        exits = iter(cut(leaving, skipped, self._size))
        size = min(self._size, len(order.rows))
        group, filled = source.new(size), 0
        rows = np.empty(size, np.int64)
        archives = source.fetched(step.rows[remaining[step.rows]] for step in order.steps)
        for step in [*order.steps, None]:
            if step is None or step.leaving:
                for slots, full in next(exits):
                    source.copy(reservoir, slots, group, filled)
                    rows[filled : filled + len(slots)] = inside[slots]
                    filled += len(slots)
                    if full:
                        yield rows, group
                        group, filled = source.new(size), 0
                        rows = np.empty(size, np.int64)
            if step is not None:
                inside[step.slots] = step.rows
                unread = remaining[step.rows]
                source.read(step.rows[unread], reservoir, step.slots[unread], epoch, next(archives))
        if filled:
            yield rows[:filled], {key: values[:filled] for key, values in group.items()}
        self._held = reservoir


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
