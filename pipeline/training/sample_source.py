"""Source of a loader's samples: whole activations, or random positions for each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.manifest import LayerEntry
from pipeline.archive.format.position_sampling import draw
from pipeline.archive.format.stored_type import value_type
from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError
from pipeline.common.places import ahead

Rows = dict[str, Array]
"""Layer → `(sample, …)`; `PLACES` + layer → indices of the drawn positions in its map or grid."""

PLACES = "positions of "

_WORTH_THREADS = 4 * 2**20


class SampleSource:
    """Some layers of an archive, keyed by the requested names."""

    def __init__(
        self, archive: Archive, layers: Mapping[str, LayerEntry], positions: int, seed: int,
        threads: int,
    ) -> None:  # fmt: skip
        """Set the layers and the number of positions per sample; 0 reads whole activations.

        Raises:
            ConfigError: when a layer has fewer positions.
        """
        self._archive, self.layers, self.positions = archive, layers, positions
        for key, entry in layers.items():
            if positions > position_count(entry):
                raise ConfigError(
                    f"positions: layer {key} has only {position_count(entry)} per sample"
                )
        self._seed, self._threads = seed, threads
        self._reading = ThreadPoolExecutor(threads)

    def close(self) -> None:
        """Close the archive's files and stop the threads."""
        self._archive.close()
        self._reading.shutdown()

    @property
    def sample_bytes(self) -> int:
        """Bytes per sample in memory."""
        return sum(int(np.prod(shape)) * dtype.itemsize for _, shape, dtype in self.kept())

    def copy(self, held: Rows, slots: Array, batch: Rows, start: int) -> None:
        """Copy rows of the reservoir to a batch; several threads copy large rows."""
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

    def kept(self) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any]]]:
        """Yield key, shape and type of each array of a sample."""
        for key, entry in self.layers.items():
            shape = (self.positions, entry.channels) if self.positions else entry.shape
            yield key, shape, value_type(entry.dtype)
            if self.positions or entry.drawn:
                yield PLACES + key, shape[:1], np.dtype(np.int64)

    def new(self, count: int) -> Rows:
        """Return newly allocated arrays for a batch."""
        return {key: np.empty((count, *shape), dtype) for key, shape, dtype in self.kept()}

    def fetched(self, several: Iterable[Array]) -> Iterator[Archive]:
        """Yield for each of several lists of rows an archive to `read` them from.

        In an object store, the next lists are requested while one is used.
        """
        names = [schema.activation_rows(entry.name) for entry in self.layers.values()]
        names += [schema.position_rows(each.name) for each in self.layers.values() if each.drawn]
        return ahead(
            lambda rows: self._archive.fetched([(name, rows) for name in names]),
            several, at=self._archive.path,
        )  # fmt: skip

    def read(self, rows: Array, out: Rows, places: Array, epoch: int, archive: Archive) -> None:
        """Read rows to the indices `places` of `out`; see `fetched`."""
        for key, entry in self.layers.items():
            name = schema.activation_rows(entry.name)
            if not self.positions:
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
                drawn = draw(
                    (self._seed, epoch), block.tolist(), position_count(entry), self.positions
                )
                out[key][target] = _picked(values, drawn, entry)
                if entry.drawn:  # the index of a stored token is not its position in the grid
                    drawn = np.take_along_axis(
                        _stored_positions(archive, entry, block), drawn, axis=1
                    )
                out[PLACES + key][target] = drawn


def _stored_positions(archive: Archive, entry: LayerEntry, rows: Array) -> Array:
    """Return the grid positions of the stored tokens."""
    positions = np.empty((len(rows), entry.shape[0]), np.int64)
    archive.read_into(schema.position_rows(entry.name), rows.tolist(), positions)
    return positions


def _picked(values: Array, drawn: Array, entry: LayerEntry) -> Array:
    """Return the drawn positions of samples, `(sample, position, channel)`."""
    vectors = np.moveaxis(values, entry.channel_axis, -1)
    vectors = vectors.reshape(len(vectors), -1, entry.channels)[:, entry.prefix_positions :]
    return np.take_along_axis(vectors, drawn[..., None], axis=1)


def position_count(entry: LayerEntry) -> int:
    """Return the number of positions per sample, without prefix tokens."""
    return int(np.prod(entry.shape)) // entry.channels - entry.prefix_positions
