"""Source of a loader's samples: whole activations, or some of their vectors for each epoch."""

import math
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.position_sampling import draw
from pipeline.archive.format.samples import Samples
from pipeline.archive.format.stored_type import value_type
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError

Rows = dict[str, Array]
"""Layer → `(sample, …)`; `PLACES` + layer → positions of the vectors in its map or grid."""

PLACES = "positions of "

_WORTH_THREADS = _WORTH_REUSE = 4 * 2**20  # bytes
_FREE_ARRAYS = 4
Tokens = Literal["patch", "class", "register", "all"]
"""Kinds of tokens; see `ActivationLoader`."""


class RowReader(Protocol):
    """Rows that can be read; an `Archive`."""

    def read_into(
        self, name: str, rows: Sequence[int], out: Array, places: Sequence[int] | None = None,
        *, threads: int = 2,
    ) -> None: ...  # fmt: skip


class RowStore(Protocol):
    """What a loader needs of an `Archive`."""

    manifest: Manifest

    @property
    def samples(self) -> Samples: ...

    def __len__(self) -> int: ...

    def fetched_each(
        self, names: Sequence[str], batches: Iterable[Array]
    ) -> Iterator[RowReader]: ...

    def close(self) -> None: ...


class SampleSource:
    """Some layers of an archive, keyed by the requested names."""

    def __init__(
        self, archive: RowStore, layers: Mapping[str, LayerEntry], positions: int,
        tokens: Tokens | None, seed: int, threads: int, *, permuted: bool = False,
    ) -> None:  # fmt: skip
        """Set the layers (requested names → entries) and what is read of them.

        Args:
            positions: number of random vectors per sample; 0: all, if there are `tokens`.
            tokens: kind of the vectors; without it and `positions`, activations are read whole.
            permuted: whether the vectors come in random order also without `positions`.

        Raises:
            ConfigError: when a layer has fewer vectors.
        """
        self._archive, self.layers = archive, layers
        self._ranges = {key: vector_range(key, entry, tokens) for key, entry in layers.items()}
        for key, vectors in self._ranges.items():
            if positions > len(vectors):
                raise ConfigError(f"positions: layer {key} has only {len(vectors)} per sample")
        counts = {key: len(vectors) for key, vectors in self._ranges.items()}
        if tokens and not positions and len({*counts.values()}) > 1:
            lengths = ", ".join(f"{key} {count}" for key, count in counts.items())
            raise ConfigError(
                f"tokens: the layers differ in vectors per sample ({lengths}); set positions"
            )
        self.vectors = positions or (next(iter(counts.values()), 0) if tokens else 0)
        self._drawn = self.vectors if positions or permuted else 0
        self._seed, self._threads = seed, threads
        self._reading = ThreadPoolExecutor(threads)
        self._memory = ReusedMemory()

    def close(self) -> None:
        """Close the archive's files and stop the threads."""
        self._archive.close()
        self._reading.shutdown()

    @property
    def sample_bytes(self) -> int:
        """Bytes per sample in memory."""
        return sum(int(np.prod(shape)) * dtype.itemsize for _, shape, dtype in self.kept())

    def includes_prefix(self, key: str) -> bool:
        """Return whether prefix tokens of a layer are read."""
        prefix = self.layers[key].prefix_positions
        return prefix > (self._ranges[key].start if self.vectors else 0)

    def copy(self, reservoir: Rows, slots: Array, batch: Rows, start: int) -> None:
        """Copy rows of the reservoir to a batch; several threads copy large rows."""
        for key, values in reservoir.items():
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

    def kept(self) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any]]]:
        """Yield key, shape and type of each array of a sample."""
        for key, entry in self.layers.items():
            shape = (self.vectors, entry.channels) if self.vectors else entry.shape
            yield key, shape, value_type(entry.dtype)
            if self.vectors or entry.drawn:
                yield PLACES + key, shape[:1], np.dtype(np.int64)

    def new(self, count: int) -> Rows:
        """Return arrays for a batch."""
        return {key: self._memory.take((count, *shape), dtype) for key, shape, dtype in self.kept()}

    def fetched(self, batches: Iterable[Array]) -> Iterator[RowReader]:
        """Yield for each of several lists of rows a reader to `read` them from."""
        names = [schema.activation_rows(entry.name) for entry in self.layers.values()]
        names += [schema.position_rows(layer.name) for layer in self.layers.values() if layer.drawn]
        return self._archive.fetched_each(names, batches)

    def read(self, rows: Array, out: Rows, places: Array, epoch: int, archive: RowReader) -> None:
        """Read rows to the indices `places` of `out`; see `fetched`."""
        for key, entry in self.layers.items():
            name = schema.activation_rows(entry.name)
            if not self.vectors:
                archive.read_into(
                    name, rows.tolist(), out[key], places.tolist(), threads=self._threads
                )
                if entry.drawn:
                    out[PLACES + key][places] = _stored_positions(archive, entry, rows)
                continue
            step = max(1, _WORTH_THREADS // entry.sample_bytes)
            buffer = np.empty((min(step, len(rows)), *entry.shape), value_type(entry.dtype))
            for start in range(0, len(rows), step):
                block = rows[start : start + step]
                values = buffer[: len(block)]
                archive.read_into(name, block.tolist(), values)
                target = places[start : start + step]
                index = self._index(key, block, epoch)
                vectors = np.moveaxis(values, entry.channel_axis, -1)
                vectors = vectors.reshape(len(vectors), -1, entry.channels)
                if self._drawn:
                    vectors = vectors[np.arange(len(vectors))[:, None], index]
                else:
                    vectors = vectors[:, self._ranges[key].start : self._ranges[key].stop]
                out[key][target] = vectors
                if entry.drawn:  # the index of a stored token is not its position in the grid
                    positions = _stored_positions(archive, entry, block)
                    out[PLACES + key][target] = np.take_along_axis(positions, index, axis=1)
                else:
                    out[PLACES + key][target] = index - entry.prefix_positions

    def _index(self, key: str, rows: Array, epoch: int) -> Array:
        """Return the indices of the vectors to read in a layer's positions, `(row, vector)`."""
        vectors = self._ranges[key]
        if not self._drawn:
            return np.broadcast_to(np.array(vectors), (len(rows), len(vectors)))
        drawn = draw((self._seed, epoch), rows.tolist(), len(vectors), self._drawn)
        return drawn + vectors.start


def _stored_positions(archive: RowReader, entry: LayerEntry, rows: Array) -> Array:
    positions = np.empty((len(rows), entry.shape[0]), np.int64)
    archive.read_into(schema.position_rows(entry.name), rows.tolist(), positions)
    return positions


def vector_range(key: str, entry: LayerEntry, tokens: Tokens | None) -> range:
    """Return the indices of a kind of tokens in a layer's positions, or raise ConfigError.

    Without a kind, all but prefix tokens.
    """
    prefix = entry.prefix_positions
    count = prefix + entry.positions_per_sample
    first = min(prefix, int(entry.class_token))
    patches = range(prefix, count)
    if tokens is None:
        return patches
    vectors = {
        "patch": patches if entry.spatial_shape or entry.drawn else range(0),
        "class": range(first),
        "register": range(first, prefix),
        "all": range(count),
    }
    if not vectors[tokens]:
        kinds = ", ".join(kind for kind, indices in vectors.items() if indices)
        raise ConfigError(f"tokens: layer {key} has no {tokens} tokens; use {kinds}")
    return vectors[tokens]


class ReusedMemory:
    """Memory of large arrays, reused when no array or tensor refers to it any more: the kernel
    clears new memory, which takes as long as filling it.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[Array]] = {}  # by size

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an uninitialized array."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < _WORTH_REUSE:
            return np.empty(shape, dtype)
        free = self._free.setdefault(nbytes, deque(maxlen=_FREE_ARRAYS))
        memory = free.popleft() if free else np.empty(nbytes, np.uint8)
        content = np.asarray(memory.data)  # base of every view of it: the last one frees it
        weakref.finalize(content, free.append, memory).atexit = False
        return content.view(dtype).reshape(shape)
