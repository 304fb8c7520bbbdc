"""Stored activations in batches, shuffled, for training on more than memory holds.

Rows are read by threads, outside Python's lock: there are no worker processes, and one copy of a
row at a time but for the reservoir.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.archive import schema
from pipeline.archive.activation_dataset import ActivationDataset
from pipeline.archive.array_pool import Array, ArrayPool
from pipeline.archive.epoch_order import EpochOrder, block_shuffled, permuted
from pipeline.archive.manifest import LayerEntry
from pipeline.archive.reader import Archive
from pipeline.errors import ConfigError

Rows = dict[str, Array]

_WORTH_THREADS = 4 * 2**20


class Shuffle(StrEnum):
    """The order of an epoch: mixed in `blocks`, which reads files in long runs; a `full`
    permutation, all of which are as likely; or `none`.
    """

    BLOCKS = "blocks"
    FULL = "full"
    NONE = "none"


class LoadedBatch(NamedTuple):
    """A batch.

    Attributes:
        activations: layer → `(sample, …)`; with positions `(sample · position, channel)`.
        labels: `(sample,)` or `(sample · position,)` int64, -1: none.
        rows: the samples' rows in the archive, as long as `labels`.
        positions: layer → index of each position in its map or grid, row by row; empty without.
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
        part: tuple[int, int] = (0, 1),
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
            part: index and count of this process among several (rank and world size).
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
        if batch_size < 1 or positions < 0 or not 0 <= part[0] < part[1]:
            raise ConfigError(
                f"batch_size must be at least 1, positions at least 0, part an index below a "
                f"count; got {batch_size}, {positions}, {part}"
            )
        dataset = ActivationDataset(archive, layers)
        self._archive = Archive.open(archive)
        self._layers = {
            key: self._archive.layers[name].entry for key, name in dataset.names.items()
        }
        self._labels = np.full(len(self._archive), -1, np.int64)
        for sample in dataset.samples:
            self._labels[sample.index] = sample.label
        self._stored = np.array([sample.index for sample in dataset.samples], np.int64)
        if rows is not None:
            self._stored = np.intersect1d(self._stored, np.asarray(rows, np.int64))
        self._shuffle = Shuffle(shuffle)
        self._seed, self._part, self._positions = seed, part, positions
        self._batch_size, self._drop_last = batch_size, drop_last
        for key, entry in self._layers.items():
            if positions > _position_count(entry):
                raise ConfigError(f"positions: {key} has {_position_count(entry)} per sample")
        row = max(1, sum(entry.sample_bytes for entry in self._layers.values()))
        kept = sum(
            positions * entry.channels * entry.sample_bytes // int(np.prod(entry.shape))
            if positions else entry.sample_bytes for entry in self._layers.values()
        )  # fmt: skip
        self._run = max(1, run_bytes // row)
        self._reservoir = max(1, min(reservoir * batch_size, memory // max(1, kept)))
        self._threads = max(1, num_threads)
        self._reading = ThreadPoolExecutor(self._threads)
        self._pool = ArrayPool()
        self._held: Rows = {}
        self.epoch = 0
        self._done = 0

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        index, count = self._part
        rows = len(self._stored) * (index + 1) // count - len(self._stored) * index // count
        return rows // self._batch_size if self._drop_last else -(-rows // self._batch_size)

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands: the epoch, and how many of its batches were given."""
        return {"epoch": self.epoch, "batches": self._done, "seed": self._seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where another loader with the same options stood.

        Raises:
            ConfigError: when it had another seed.
        """
        if state["seed"] != self._seed:
            raise ConfigError(f"the loader's state is of seed {state['seed']}, not {self._seed}")
        self.epoch, self._done = state["epoch"], state["batches"]

    def close(self) -> None:
        """Close the archive's files, and end the threads."""
        self._archive.close()
        self._reading.shutdown()

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
        each = self._positions or 1
        tensors = {key: torch.from_numpy(values[key]) for key in self._layers}
        if self._positions:
            tensors = {key: one.flatten(0, 1) for key, one in tensors.items()}
        places = {
            key: torch.from_numpy(self._places(rows, entry).reshape(-1))
            for key, entry in self._layers.items() if self._positions
        }  # fmt: skip
        repeated = np.repeat(rows, each)
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
            batch = self._new(len(part))
            self._read(part, batch, np.arange(len(part)))
            yield part, batch

    def _mixed(self, order: EpochOrder, skipped: int) -> Iterator[tuple[Array, Rows]]:
        """Give batches out of the reservoir, without so many of the first samples."""
        wanted = np.zeros(len(self._archive), bool)
        wanted[order.rows[skipped:]] = True
        if any(len(values) != order.size for values in self._held.values()) or not self._held:
            self._held = {key: np.empty((order.size, *s), kind) for key, s, kind in self._kept()}
        held = self._held  # the same memory in every epoch
        inside = np.zeros(order.size, np.int64)
        leaving = [step.slots for step in order.steps if step.leaving] + [order.last]
        exits = iter(_cut(leaving, skipped, self._batch_size))
        batch, filled = self._new(self._batch_size), 0
        rows = np.empty(self._batch_size, np.int64)
        for step in [*order.steps, None]:
            if step is None or step.leaving:
                for slots, full in next(exits):
                    self._copy(held, slots, batch, filled)
                    rows[filled : filled + len(slots)] = inside[slots]
                    filled += len(slots)
                    if full:
                        yield rows, batch
                        batch, filled = self._new(self._batch_size), 0
                        rows = np.empty(self._batch_size, np.int64)
            if step is not None:
                inside[step.slots] = step.rows
                new = wanted[step.rows]
                self._read(step.rows[new], held, step.slots[new])
        if filled:
            yield rows[:filled], {key: values[:filled] for key, values in batch.items()}

    def _copy(self, held: Rows, slots: Array, batch: Rows, start: int) -> None:
        """Copy rows of the reservoir to a batch, by several threads where they are large."""
        for key, values in held.items():
            out = batch[key][start : start + len(slots)]
            if out.nbytes < _WORTH_THREADS:
                np.take(values, slots, axis=0, out=out, mode="clip")  # "raise" copies twice
                continue
            halves = np.array_split(np.arange(len(slots)), self._threads)
            list(self._reading.map(
                lambda half, v=values, o=out: np.take(
                    v, slots[half], axis=0, out=o[half[0] : half[-1] + 1], mode="clip"
                ),
                [half for half in halves if len(half)],
            ))  # fmt: skip

    def _kept(self) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any]]]:
        """Yield layer, shape and type of what is kept of a sample."""
        for key, entry in self._layers.items():
            shape = (self._positions, entry.channels) if self._positions else entry.shape
            yield key, shape, np.dtype(entry.dtype)

    def _new(self, count: int) -> Rows:
        """Return memory for a batch."""
        return {key: self._pool.take((count, *shape), dtype) for key, shape, dtype in self._kept()}

    def _read(self, rows: Array, out: Rows, places: Array) -> None:
        """Read rows to places."""
        for key, entry in self._layers.items():
            name = schema.activation_rows(entry.name)
            if not self._positions:
                self._archive.read_into(
                    name, rows.tolist(), out[key], places.tolist(), threads=self._threads
                )
                continue
            step = max(1, _WORTH_THREADS // entry.sample_bytes)
            for at in range(0, len(rows), step):
                some = rows[at : at + step]
                whole = self._pool.take((step, *entry.shape), np.dtype(entry.dtype))[: len(some)]
                self._archive.read_into(name, some.tolist(), whole)
                out[key][places[at : at + step]] = self._picked(some, whole, entry)

    def _picked(self, rows: Array, values: Array, entry: LayerEntry) -> Array:
        """Return the drawn positions, `(sample, position, channel)`."""
        vectors = np.moveaxis(values, entry.channel_axis, -1)
        vectors = vectors.reshape(len(vectors), -1, entry.channels)[:, entry.prefix_tokens :]
        places = self._places(rows, entry)
        return np.ascontiguousarray(np.take_along_axis(vectors, places[..., None], axis=1))

    def _places(self, rows: Array, entry: LayerEntry) -> Array:
        """Return the positions of each row, `(sample, position)`: the same in any order."""
        count = _position_count(entry)
        return np.stack([
            np.random.default_rng([self._seed, self.epoch, row]).choice(
                count, self._positions, replace=False
            )
            for row in rows.tolist()
        ])  # fmt: skip


def _position_count(entry: LayerEntry) -> int:
    return int(np.prod(entry.shape)) // entry.channels - entry.prefix_tokens


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
