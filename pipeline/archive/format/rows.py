"""Readers of the rows of one dataset in one file; every row is compared with its checksum."""

from __future__ import annotations

import copy
import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Self

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from pipeline.archive.format.codec import decompress
from pipeline.archive.format.file_bytes import Extent
from pipeline.archive.format.footer import Table, damaged
from pipeline.archive.format.object_bytes import ByteSource
from pipeline.archive.format.stored_type import decode
from pipeline.common.arrays import Array
from pipeline.common.machine import cores
from pipeline.common.places import Place

Part = tuple[int | slice, ...]
_CACHED = 2**18
"""Bytes of small rows that are hashed and then copied from the CPU cache."""
_PART = 2**20
"""Bytes of a large row that are hashed and then copied from the CPU cache."""


class Checksums:
    """Checksums of the rows of a dataset; None when checking is disabled."""

    def __init__(self, path: Place, name: str, start: int, sums: Array | None) -> None:
        self._path, self._name, self._start = path, name, start
        self.sums = sums

    def disabled(self) -> Checksums:
        """Return checksums that compare nothing, for rows that have been compared."""
        return Checksums(self._path, self._name, self._start, None)

    def compare(self, rows: Array | range, values: Iterable[Any]) -> None:
        """Compare rows of the file, given by number, with their checksums."""
        if self.sums is not None:
            self.compare_sums(rows, [xxh3_64_intdigest(row) for row in values])

    def compare_sums(self, rows: Array | range, computed: Sequence[int]) -> None:
        """Compare computed checksums; see `compare`."""
        if self.sums is None:
            return
        at = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
        expected = self.sums[at].tolist()
        if computed == expected:
            return
        wrong = next(row for row, *sums in zip(rows, computed, expected, strict=True)
                     if sums[0] != sums[1])  # fmt: skip
        row = self._start + int(wrong)
        raise damaged(self._path, f"at row {row} of {self._name}: XXH3 checksum mismatch")


class RowReader(ABC):
    """Reader of the rows of a dataset in one file."""

    _source: ByteSource

    @abstractmethod
    def extents(self, rows: Array) -> list[Extent]:
        """Return where the bytes of some rows are."""

    @abstractmethod
    def read(self, first: int, out: Array, part: Part = ()) -> None:
        """Fill `out` with a part of each row, starting at row `first` of the file.

        OSError and ValueError mean damage, and get their place from the caller.
        """

    @abstractmethod
    def gather(self, rows: Array, out: Array, places: Array) -> None:
        """Read rows in any order, each to its index in `out`; see `read`."""

    def fetched(self, rows: Array) -> Self:
        """Return a reader that has requested the bytes of some rows from the store at once."""
        duplicate = copy.copy(self)
        duplicate._source = self._source.fetch(self.extents(rows))
        return duplicate


class ContiguousRows(RowReader):
    """Rows of a contiguous dataset: hashed in place, then copied once."""

    def __init__(self, source: ByteSource, table: Table, checksums: Checksums) -> None:
        self._source, self._table, self._checksums = source, table, checksums
        self._offset = table.extents[0][0]
        self._step = max(1, _CACHED // max(1, table.row_bytes))
        self._in_parts = checksums.sums is not None and table.row_bytes > _PART
        self._mapped: Array | None = None
        if source.mapped is not None:
            values = math.prod(table.shape)
            flat = np.frombuffer(source.mapped.data, table.bits_type, values, self._offset)
            self._mapped = flat.reshape(table.shape)

    def extents(self, rows: Array) -> list[Extent]:
        size = self._table.row_bytes
        return [(offset, size) for offset in (self._offset + rows * size).tolist()]

    def fetched(self, rows: Array) -> Self:
        """See `RowReader.fetched`; compares the rows in the thread that requests them."""
        duplicate = super().fetched(rows)
        if duplicate._source is not self._source:  # not a local file
            contents = (duplicate._source.read(*extent) for extent in self.extents(rows))
            self._checksums.compare(rows, contents)
            duplicate._checksums = self._checksums.disabled()
        return duplicate

    def read(self, first: int, out: Array, part: Part = ()) -> None:
        contiguous = not part and out.flags.c_contiguous
        if contiguous and self._mapped is None and out.dtype == self._table.bits_type:
            self._source.read_into(out, self._offset + first * self._table.row_bytes)
            self._checksums.compare(range(first, first + len(out)), out)
            return
        if contiguous and self._in_parts:
            self._read_in_parts(first, out)
            return
        for start in range(0, len(out), self._step):
            block = out[start : start + self._step]
            numbers = range(first + start, first + start + len(block))
            rows = self._rows(numbers.start, len(block))
            self._checksums.compare(numbers, rows)
            block[...] = decode(rows[(slice(None), *part)] if part else rows, self._table.dtype)

    def gather(self, rows: Array, out: Array, places: Array) -> None:
        if self._mapped is None:
            for row, index in zip(rows.tolist(), places.tolist(), strict=True):
                self.read(row, out[index : index + 1])
            return
        for start in range(0, len(rows), self._step):
            numbers = rows[start : start + self._step]
            values = self._mapped[numbers]
            self._checksums.compare(numbers, values)
            out[places[start : start + self._step]] = decode(values, self._table.dtype)

    def _rows(self, first: int, count: int) -> Array:
        if self._mapped is not None:
            return self._mapped[first : first + count]
        rows = np.empty((count, *self._table.shape[1:]), self._table.bits_type)
        self._source.read_into(rows, self._offset + first * self._table.row_bytes)
        return rows

    def _read_in_parts(self, first: int, out: Array) -> None:
        """Read mapped rows larger than the CPU cache: hash a part, then copy it from the cache."""
        step = _PART // out.itemsize
        for number, target in enumerate(out.reshape(len(out), -1), first):
            row, checksum = self._rows(number, 1).reshape(-1), xxh3_64()
            for start in range(0, len(row), step):
                checksum.update(row[start : start + step].data)
                target[start : start + step] = decode(row[start : start + step], self._table.dtype)
            self._checksums.compare_sums(range(number, number + 1), [checksum.intdigest()])


class CompressedRows(RowReader):
    """Rows of a chunked, compressed dataset; blocks, the chunks of the same rows, are decompressed
    in parallel.
    """

    def __init__(self, source: ByteSource, table: Table, checksums: Checksums) -> None:
        self._source, self._table, self._checksums = source, table, checksums
        self._per_block = math.prod(table.grid[1:])
        self._latest: tuple[int, Array] | None = None

    def extents(self, rows: Array) -> list[Extent]:
        blocks = np.unique(rows // self._table.chunk[0]).tolist()
        return [extent for block in blocks for extent in self._chunks(block)]

    def _chunks(self, block: int) -> Sequence[Extent]:
        return self._table.extents[block * self._per_block : (block + 1) * self._per_block]

    def read(self, first: int, out: Array, part: Part = ()) -> None:
        self.gather(np.arange(first, first + len(out)), out, np.arange(len(out)), part)

    def gather(self, rows: Array, out: Array, places: Array, part: Part = ()) -> None:
        height = self._table.chunk[0]
        order = np.argsort(rows, kind="stable")
        blocks, starts = np.unique(rows[order] // height, return_index=True)
        selections = np.split(order, starts[1:])

        def fill(block: int, selected: Array) -> None:
            decoded = self._block(block, alone=len(blocks) == 1)
            numbers = rows[selected]
            offsets = numbers - block * height
            # A large row fills its block: a view of it, not a copy.
            values = decoded[offsets] if len(offsets) > 1 else decoded[offsets[0] :][:1]
            self._checksums.compare(numbers, values)
            out[places[selected]] = decode(values[(slice(None), *part)], self._table.dtype)

        apply = map if len(blocks) == 1 else row_threads().map
        list(apply(fill, blocks.tolist(), selections))

    def _block(self, block: int, *, alone: bool) -> Array:
        """Return the rows of a block; `alone` decompresses its chunks in parallel."""
        table, latest = self._table, self._latest
        if latest is not None and latest[0] == block:
            return latest[1]
        extents = self._chunks(block)
        if len(extents) == 1:
            rows = self._chunk(extents[0])
        else:
            rows = np.empty((table.chunk[0], *table.shape[1:]), table.bits_type)
            positions = itertools.product(*map(range, table.grid[1:]))

            def copy_chunk(position: tuple[int, ...], extent: tuple[int, int]) -> None:
                corner = [i * size for i, size in zip(position, table.chunk[1:], strict=True)]
                ends = (a + size for a, size in zip(corner, table.chunk[1:], strict=True))
                target = rows[(slice(None), *map(slice, corner, ends))]
                target[...] = self._chunk(extent)[tuple(map(slice, target.shape))]

            apply = row_threads().map if alone else map
            list(apply(copy_chunk, positions, extents))
        if alone and table.chunk[0] > 1:  # its other rows are likely to be read next
            self._latest = (block, rows)
        return rows

    def _chunk(self, extent: tuple[int, int]) -> Array:
        table = self._table
        return decompress(self._source.read(*extent), table.codec, table.chunk, table.bits_type)


@cache
def row_threads() -> ThreadPoolExecutor:
    """Return the threads that copy or decompress rows."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="rows")


os.register_at_fork(after_in_child=row_threads.cache_clear)  # threads do not survive a fork
