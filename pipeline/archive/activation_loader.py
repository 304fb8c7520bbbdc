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
from pipeline.archive.epoch_order import EpochOrder, block_shuffled, permuted
from pipeline.archive.manifest import LayerEntry
from pipeline.archive.reader import Archive
from pipeline.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
Rows = dict[str, Array]
_AHEAD = 2


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
        """Close the archive's files."""
        self._archive.close()

    def __iter__(self) -> Iterator[LoadedBatch]:
        """Give the batches that are left of the epoch; the next call begins the next one.

        Raises:
            ArchiveError: naming the shard, when a row is damaged.
        """
        seed = (self._seed, self.epoch)
        first = self._done
        with ThreadPoolExecutor(self._threads) as threads:
            if self._shuffle is Shuffle.BLOCKS:
                order = block_shuffled(self._stored, self._run, self._reservoir, seed, self._part)
                batches = self._mixed(order, first, threads)
            else:
                shuffled = self._shuffle is Shuffle.FULL
                rows = permuted(self._stored, seed, self._part, shuffle=shuffled)
                batches = self._in_order(rows, first, threads)
            for number, (rows, values) in enumerate(batches, first):
                if number >= len(self):
                    break
                self._done = number + 1
                yield self._batch(rows, values)
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

    def _in_order(
        self, rows: Array, first: int, threads: ThreadPoolExecutor
    ) -> Iterator[tuple[Array, Rows]]:
        """Give batches of rows as they come, some read ahead."""
        size = self._batch_size
        parts = [rows[start : start + size] for start in range(first * size, len(rows), size)]
        ahead = [threads.submit(self._read, part) for part in parts[:_AHEAD]]
        for number, part in enumerate(parts):
            if number + _AHEAD < len(parts):
                ahead.append(threads.submit(self._read, parts[number + _AHEAD]))
            yield part, ahead.pop(0).result()

    def _mixed(
        self, order: EpochOrder, first: int, threads: ThreadPoolExecutor
    ) -> Iterator[tuple[Array, Rows]]:
        """Give batches out of the reservoir, from batch `first` on."""
        wanted = np.zeros(len(self._archive), bool)
        wanted[order.rows[first * self._batch_size :]] = True  # the others were given before
        steps = order.steps
        ahead = [threads.submit(self._read_run, step.rows, wanted) for step in steps[:_AHEAD]]
        held: Rows = {}
        left: list[tuple[Array, Rows]] = []
        at, passed = first * self._batch_size, 0
        inside = np.zeros(order.size, np.int64)
        for number, step in enumerate(steps):
            if number + _AHEAD < len(steps):
                ahead.append(threads.submit(self._read_run, steps[number + _AHEAD].rows, wanted))
            values = ahead.pop(0).result()
            if not held:
                held = {k: np.empty((order.size, *v.shape[1:]), v.dtype) for k, v in values.items()}
            if step.leaving:
                left += self._leaving(held, inside, step.slots, passed, at)
                passed += len(step.slots)
            inside[step.slots] = step.rows
            for key, value in values.items():
                held[key][step.slots] = value
            yield from _batches(left, self._batch_size, last=False)
        for start in range(0, len(order.last), self._batch_size):
            slots = order.last[start : start + self._batch_size]
            left += self._leaving(held, inside, slots, passed, at)
            passed += len(slots)
            yield from _batches(left, self._batch_size, last=False)
        yield from _batches(left, self._batch_size, last=True)

    def _leaving(
        self, held: Rows, inside: Array, slots: Array, passed: int, at: int
    ) -> list[tuple[Array, Rows]]:
        """Return what leaves the reservoir, without what was given before."""
        slots = slots[max(0, at - passed) :]
        if not len(slots):
            return []
        return [(inside[slots], {key: value[slots] for key, value in held.items()})]

    def _read_run(self, rows: Array, wanted: Array) -> Rows:
        """Read a run; nothing where none of its rows is wanted."""
        if not wanted[rows].any():
            return {key: self._blank(entry, len(rows)) for key, entry in self._layers.items()}
        return self._read(rows)

    def _blank(self, entry: LayerEntry, count: int) -> Array:
        shape = (self._positions, entry.channels) if self._positions else entry.shape
        return np.zeros((count, *shape), np.dtype(entry.dtype))

    def _read(self, rows: Array) -> Rows:
        found = {}
        for key, entry in self._layers.items():
            name = schema.activation_rows(entry.name)
            if len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
                values = self._archive.read_rows(name, int(rows[0]), int(rows[-1]) + 1)
            else:
                values = np.empty((len(rows), *entry.shape), np.dtype(entry.dtype))
                self._archive.read_into(name, rows, values)
            found[key] = self._picked(rows, values, entry) if self._positions else values
        return found

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


def _batches(
    left: list[tuple[Array, Rows]], size: int, *, last: bool
) -> Iterator[tuple[Array, Rows]]:
    """Take whole batches off a list of rows; with `last` also what remains."""
    there = sum(len(rows) for rows, _ in left)
    if there < size and not (last and there):
        return
    rows = np.concatenate([rows for rows, _ in left])
    keys = left[0][1]
    values = {key: _joined([part[key] for _, part in left]) for key in keys}
    end = there if last else there - there % size
    for start in range(0, end, size):
        stop = min(start + size, end)
        yield rows[start:stop], {key: value[start:stop] for key, value in values.items()}
    left[:] = [(rows[end:], {k: v[end:].copy() for k, v in values.items()})] if end < there else []


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
