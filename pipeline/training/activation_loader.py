"""Stored activations in batches, shuffled, for training on more than memory holds.

Rows are read by threads, outside Python's lock: there are no worker processes, and one copy of a
row at a time but for the reservoir.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.archive.format.manifest import differences, part_of
from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError
from pipeline.training.activation_dataset import ActivationDataset
from pipeline.training.block_shuffle import EpochOrder, block_shuffled, permuted
from pipeline.training.sample_source import PLACES, Rows, SampleSource


class Shuffle(StrEnum):
    """The order of an epoch: mixed in `blocks`, which reads files in long runs; a `full`
    permutation, all of which are as likely; or `none`.
    """

    BLOCKS = "blocks"
    FULL = "full"
    NONE = "none"


class LoadedBatch(NamedTuple):
    """A batch, in memory of its own.

    Attributes:
        activations: layer → `(sample, …)`; with positions `(sample · position, channel)`.
        labels: `(sample,)` or `(sample · position,)` int64, -1: none.
        rows: the samples' rows in the archive, as long as `labels`.
        positions: layer → place of each vector in the layer's map or grid, row by row, or among its
            tokens without prefix tokens, as long as `labels`. Of an archive made with
            `reduction=positions` also without `positions`, `(sample, token)`; otherwise empty.
    """

    activations: dict[str, Tensor]
    labels: Tensor
    rows: Tensor
    positions: dict[str, Tensor]


class ActivationLoader:
    """Batches of stored activations, epoch after epoch.

    >>> loader = ActivationLoader("outputs/run/archive", "layer4", 64)  # doctest: +SKIP
    ... for epoch in range(3):
    ...     for batch in loader:
    ...         train(batch.activations["layer4"], batch.labels)

    Every epoch is another order; it depends on the seed and the epoch alone, not on the number of
    threads. Over several processes each takes its share; no sample is twice or nowhere.
    """

    def __init__(
        self,
        archive: str | Path,
        layers: str | Sequence[str],
        batch_size: int,
        *,
        shuffle: str = Shuffle.BLOCKS,
        seed: int = 0,
        positions: int = 0,
        rank: int = 0,
        world_size: int = 1,
        rows: Sequence[int] | None = None,
        drop_last: bool = False,
        run_bytes: int = 8 * 2**20,
        reservoir: int = 64,
        memory: int = 2**30,
        num_threads: int = 2,
    ) -> None:
        """Open an archive.

        Args:
            archive: its folder, or a packed file.
            layers: names or aliases; activations are keyed by what is given here.
            batch_size: samples per batch.
            shuffle: see `Shuffle`.
            seed: of the order, and of the positions.
            positions: so many of each sample and epoch, drawn at random, instead of whole maps or
                token sequences; prefix tokens are none. 0: all there is.
            rank: index of this process; each reads its own share of the rows.
            world_size: number of processes.
            rows: of these samples only, as a training set; skipped ones are left out in any case.
            drop_last: leave out a last batch that is not full.
            run_bytes: read at once.
            reservoir: batches that are mixed by `shuffle="blocks"`.
            memory: bytes that the reservoir takes at most.
            num_threads: that read.

        Raises:
            ArchiveError: when it is no complete archive.
            ConfigError, LayerError: when an option is out of range, or there is no such layer.
        """
        if batch_size < 1 or positions < 0 or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch_size must be at least 1, positions at least 0, rank below "
                f"world_size; got {batch_size}, {positions}, {rank}, {world_size}"
            )
        dataset = ActivationDataset(archive, layers)
        opened = Archive.open(archive)
        entries = {key: opened.layers[name].entry for key, name in dataset.names.items()}
        self._labels = np.full(len(opened), -1, np.int64)
        for sample in dataset.samples:
            self._labels[sample.index] = sample.label
        self._stored = np.array([sample.index for sample in dataset.samples], np.int64)
        if rows is not None:
            self._stored = np.intersect1d(self._stored, np.asarray(rows, np.int64))
        if shuffle not in tuple(Shuffle):
            raise ConfigError(f"shuffle: {shuffle!r} is none of {', '.join(Shuffle)}")
        self._shuffle = Shuffle(shuffle)
        self._seed, self._part = seed, (rank, world_size)
        self._batch_size, self._drop_last = batch_size, drop_last
        threads = max(1, num_threads)
        self._source = SampleSource(opened, entries, positions, seed, threads)
        row = max(1, sum(entry.sample_bytes for entry in entries.values()))
        self._run = max(1, run_bytes // row)
        self._reservoir = max(
            1, min(reservoir * batch_size, memory // max(1, self._source.sample_bytes))
        )
        self._options: dict[str, Any] = {
            "seed": seed, "shuffle": str(shuffle), "batch_size": batch_size,
            "part": [rank, world_size], "positions": positions,
            "samples": len(self._stored), "run": self._run,
            "reservoir": self._reservoir,
        }  # fmt: skip
        self._held: Rows = {}
        self.epoch = 0
        self._done = 0

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        rows = len(part_of(len(self._stored), *self._part))
        return rows // self._batch_size if self._drop_last else -(-rows // self._batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands: the epoch, how many of its batches were given, and the
        options that its order depends on.
        """
        return {"epoch": self.epoch, "batches": self._done, "options": dict(self._options)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader with the same options stood.

        Raises:
            ConfigError: when its options were others, so that its order was.
        """
        if state["options"] != self._options:
            lines = differences(state["options"], self._options)
            raise ConfigError(f"the loader's state is of other options ({'; '.join(lines)})")
        self.epoch, self._done = state["epoch"], state["batches"]

    def close(self) -> None:
        """Close the archive's files, and end the threads."""
        self._source.close()

    def __iter__(self) -> Iterator[LoadedBatch]:
        """Give the batches that are left of the epoch; the next call begins the next one.

        Raises:
            ArchiveError: naming the shard, when a row is damaged.
        """
        seed, first = (self._seed, self.epoch), self._done
        if self._shuffle is Shuffle.BLOCKS:
            order = block_shuffled(self._stored, self._run, self._reservoir, seed, self._part)
            batches = self._mixed(order, first * self._batch_size)
        else:
            shuffled = self._shuffle is Shuffle.FULL
            rows = permuted(self._stored, seed, self._part, shuffle=shuffled)
            batches = self._in_order(rows[first * self._batch_size :])
        with ThreadPoolExecutor(1) as ahead:  # a batch is made while the one before is used
            coming = ahead.submit(next, batches, None)
            for number in range(first, len(self)):
                found = coming.result()
                assert found is not None
                coming = ahead.submit(next, batches, None)
                self._done = number + 1
                yield self._batch(*found)
        self.epoch, self._done = self.epoch + 1, 0

    def _batch(self, rows: Array, values: Rows) -> LoadedBatch:
        source = self._source
        places = {
            key: torch.from_numpy(values[PLACES + key])
            for key in source.layers
            if PLACES + key in values
        }
        tensors = {key: torch.from_numpy(values[key]) for key in source.layers}
        if source.positions:
            tensors = {key: one.flatten(0, 1) for key, one in tensors.items()}
            places = {key: one.flatten() for key, one in places.items()}
        repeated = np.repeat(rows, source.positions or 1)
        return LoadedBatch(
            activations=tensors,
            labels=torch.from_numpy(self._labels[repeated]),
            rows=torch.from_numpy(repeated),
            positions=places,
        )

    def _in_order(self, rows: Array) -> Iterator[tuple[Array, Rows]]:
        """Give batches of rows as they come."""
        for start in range(0, len(rows), self._batch_size):
            part = rows[start : start + self._batch_size]
            batch = self._source.new(len(part))
            self._source.read(part, batch, np.arange(len(part)), self.epoch)
            yield part, batch

    def _mixed(self, order: EpochOrder, skipped: int) -> Iterator[tuple[Array, Rows]]:
        """Give batches out of the reservoir, without so many of the first samples."""
        source = self._source
        wanted = np.zeros(len(self._labels), bool)
        wanted[order.rows[skipped:]] = True
        held, self._held = self._held, {}  # an epoch that overlaps this one has its own memory
        if any(len(values) != order.size for values in held.values()) or not held:
            held = {key: np.empty((order.size, *s), kind) for key, s, kind in source.kept()}
        inside = np.zeros(order.size, np.int64)
        leaving = [step.slots for step in order.steps if step.leaving] + [order.last]
        exits = iter(_cut(leaving, skipped, self._batch_size))
        batch, filled = self._source.new(self._batch_size), 0
        rows = np.empty(self._batch_size, np.int64)
        for step in [*order.steps, None]:
            if step is None or step.leaving:
                for slots, full in next(exits):
                    source.copy(held, slots, batch, filled)
                    rows[filled : filled + len(slots)] = inside[slots]
                    filled += len(slots)
                    if full:
                        yield rows, batch
                        batch, filled = self._source.new(self._batch_size), 0
                        rows = np.empty(self._batch_size, np.int64)
            if step is not None:
                inside[step.slots] = step.rows
                new = wanted[step.rows]
                source.read(step.rows[new], held, step.slots[new], self.epoch)
        if filled:
            yield rows[:filled], {key: values[:filled] for key, values in batch.items()}
        self._held = held


def _cut(leaving: Sequence[Array], skipped: int, size: int) -> Iterator[list[tuple[Array, bool]]]:
    """Yield what leaves with each step, cut where batches end, and whether one is full then.

    >>> [[(part.tolist(), full) for part, full in some]
    ...  for some in _cut([np.arange(3), np.arange(4)], 1, 4)]
    [[([1, 2], False)], [([0, 1], True), ([2, 3], False)]]
    """
    passed = 0
    for slots in leaving:
        left = slots[max(0, skipped - passed) :]
        at = max(passed, skipped)
        passed += len(slots)
        found = []
        while len(left):
            room = size - (at - skipped) % size
            found.append((left[:room], len(left) >= room))
            at, left = at + min(room, len(left)), left[room:]
        yield found
