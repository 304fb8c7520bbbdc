"""The rows of an archive in an object store: all ranges of a read are requested at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.rows import Part, RowReader
from pipeline.archive.format.stored_type import value_type
from pipeline.archive.reading.shards import Shards
from pipeline.common.arrays import Array
from pipeline.common.object_path import ObjectPath
from pipeline.common.places import Place, mapped

_IN_MEMORY = 64 * 2**20


class RemoteShards(Shards):
    """Shards whose rows are fetched into memory, and read from there."""

    def fetched(self, wanted: Iterable[tuple[str, Sequence[int]]]) -> Shards:
        """See `Shards.fetched`."""
        starts = np.asarray(self._starts)
        parts = []
        for name, rows in wanted:
            numbers = np.searchsorted(starts, rows, side="right") - 1
            parts += [
                (number, name, np.asarray(rows)[numbers == number] - starts[number])
                for number in np.unique(numbers).tolist()
            ]

        def fetch(part: tuple[int, str, Array]) -> tuple[tuple[int, str], RowReader]:
            number, name, rows = part
            return (number, name), self._reader(number, name).fetched(rows)

        shards = object.__new__(Shards)
        shards.__dict__.update(self.__dict__)
        shards._readers = dict(mapped(fetch, parts, at=self._paths[0]))
        return shards

    def read(self, name: str, start: int, stop: int, part: Part = ()) -> Array:
        """See `Shards.read`."""
        blocks = [
            self.fetched([(name, rows)]).read(name, rows[0], rows[-1] + 1, part)
            for rows in self._blocks(name, range(start, stop))
        ]
        return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]

    def read_into(
        self, name: str, rows: Sequence[int], out: Array, places: Sequence[int] | None = None,
        *, threads: int,
    ) -> None:  # fmt: skip
        """See `Shards.read_into`."""
        places = range(len(rows)) if places is None else places
        for block in self._blocks(name, range(len(rows))):
            some = rows[block.start : block.stop]
            shards = self.fetched([(name, some)])
            shards.read_into(name, some, out, places[block.start : block.stop], threads=threads)

    def jpeg(self, row: int) -> bytes:
        """See `Shards.jpeg`."""
        return self.fetched([(schema.JPEG_ROWS, [row])]).jpeg(row)

    def _blocks(self, name: str, rows: range) -> Iterable[range]:
        shape, dtype = self._shapes[name]
        step = max(1, _IN_MEMORY // max(1, math.prod(shape) * value_type(dtype).itemsize))
        return (rows[i : i + step] for i in range(0, len(rows), step))


def open_shards(
    files: Sequence[Place], manifest: Manifest, digests: Mapping[str, str], *, check: bool
) -> Shards:
    """Return the shards of files or objects; see `Shards`."""
    kind = RemoteShards if isinstance(files[0], ObjectPath) else Shards
    return kind(files, manifest, digests, check=check)
