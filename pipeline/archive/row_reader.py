"""Rows out of one dataset of one file, each compared with its checksum: mapped, read, or by HDF5.

Files on this machine's own disks are mapped: a row is then hashed where it lies and copied once.
A failing disk ends a process that maps its files with SIGBUS; network file systems fail more often
than disks, so their files are read instead, which ends in an error.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from pipeline.foundation.arrays import Array
from pipeline.foundation.errors import ArchiveError

Part = tuple[int | slice, ...]
_CACHED = 2**18
"""Bytes of small rows that are hashed and then copied out of a cache."""
_PART = 2**20
"""Bytes of a large row that are."""


class RowReader(Protocol):
    """A dataset's rows in one file."""

    def read(self, first: int, out: Array, part: Part = ()) -> None:
        """Read as many rows as `out` has, of each the part, from row `first` of the file on.

        Raises:
            ArchiveError: when a checksum fails.
            OSError: when the file cannot be read.
        """


class Checksums:
    """What rows are compared with; nothing, where they are not to be."""

    def __init__(self, path: Path, name: str, start: int, sums: Array | None) -> None:
        """Take those of the rows of a file that begins with row `start` of the archive."""
        self._path, self._name, self._start = path, name, start
        self._sums = sums

    @property
    def wanted(self) -> bool:
        """Whether rows are to be compared."""
        return self._sums is not None

    def compare(self, first: int, values: Array) -> None:
        """Compare rows of the file, from row `first` on, each of them contiguous.

        Raises:
            ArchiveError: naming file, row and dataset.
        """
        if self.wanted:
            self.expect(first, [xxh3_64_intdigest(row) for row in values])

    def compare_each(self, rows: Array, values: Array) -> None:
        """Compare rows of the file by their numbers; see `compare`."""
        if self._sums is not None:
            found = [xxh3_64_intdigest(row) for row in values]
            self._refuse_wrong(rows.tolist(), found, self._sums[rows].tolist())

    def expect(self, first: int, found: Sequence[int]) -> None:
        """Compare checksums that were found of rows, from row `first` on; see `compare`."""
        assert self._sums is not None
        rows = range(first, first + len(found))
        self._refuse_wrong(rows, found, self._sums[first : first + len(found)].tolist())

    def _refuse_wrong(
        self, rows: Sequence[int], found: Sequence[int], expected: Sequence[int]
    ) -> None:
        if found == expected:
            return
        wrong = next(row for row, *sums in zip(rows, found, expected, strict=True)
                     if sums[0] != sums[1])  # fmt: skip
        raise ArchiveError(
            f"{self._path}: damaged at row {self._start + wrong} of {self._name}, it is not what "
            "was written (XXH3); delete the shard and run the extraction again to make it anew"
        )


def _take_part(
    reader: RowReader, shape: tuple[int, ...], first: int, out: Array, part: Part
) -> None:
    """Read whole rows of `shape`, and of each the part."""
    whole = np.empty((len(out), *shape), out.dtype)
    reader.read(first, whole)
    out[...] = whole[(slice(None), *part)]


class MappedRows:
    """Rows of a contiguous dataset, out of mapped memory."""

    def __init__(self, mapped: mmap.mmap, offset: int, like: Array, checksums: Checksums) -> None:
        """Take the place of the rows; `like` has their shape and type, with no row."""
        count = int(np.prod(like.shape))
        flat = np.frombuffer(mapped, like.dtype, count, offset)
        self._rows = flat.reshape(like.shape)
        self._checksums = checksums
        self._step = max(1, _CACHED // max(1, self._rows[:1].nbytes))

    def read(self, first: int, out: Array, part: Part = ()) -> None:
        """See `RowReader.read`."""
        large = self._checksums.wanted and self._rows[:1].nbytes > _PART
        if large and not part and out.flags.c_contiguous:
            self._read_in_parts(first, out)
            return
        for at in range(0, len(out), self._step):
            some = out[at : at + self._step]
            rows = self._rows[first + at : first + at + len(some)]
            self._checksums.compare(first + at, rows)
            some[...] = rows[(slice(None), *part)] if part else rows

    def gather(self, rows: Array, out: Array, places: Array) -> None:
        """Read small rows in any order, each to its place in `out`; see `RowReader.read`."""
        for at in range(0, len(rows), self._step):
            numbers = rows[at : at + self._step]
            values = self._rows[numbers]
            self._checksums.compare_each(numbers, values)
            out[places[at : at + self._step]] = values

    def _read_in_parts(self, first: int, out: Array) -> None:
        """Read rows that a cache does not hold: what was just hashed is copied from there."""
        step = _PART // out.itemsize
        for number, to in enumerate(out.reshape(len(out), -1), first):
            row, checksum = self._rows[number].reshape(-1), xxh3_64()
            for at in range(0, len(row), step):
                checksum.update(row[at : at + step])
                to[at : at + step] = row[at : at + step]
            self._checksums.expect(number, [checksum.intdigest()])


class FileRows:
    """Rows of a contiguous dataset, read from the file."""

    def __init__(self, file: OpenFile, offset: int, like: Array, checksums: Checksums) -> None:
        """Take the place of the rows; see `MappedRows`."""
        self._file, self._offset, self._like, self._checksums = file, offset, like, checksums

    def read(self, first: int, out: Array, part: Part = ()) -> None:
        """See `RowReader.read`."""
        if part:
            _take_part(self, self._like.shape[1:], first, out, part)
            return
        self._file.read_into(out, self._offset + first * self._like[:1].nbytes)
        self._checksums.compare(first, out)


class Hdf5Rows:
    """Rows of a chunked dataset, through HDF5."""

    def __init__(
        self, open_file: Callable[[], h5py.File], lock: threading.RLock, name: str,
        checksums: Checksums,
    ) -> None:  # fmt: skip
        """Take what opens the file, which may have been closed in between."""
        self._open, self._lock, self._name, self._checksums = open_file, lock, name, checksums

    def read(self, first: int, out: Array, part: Part = ()) -> None:
        """See `RowReader.read`."""
        with self._lock:
            dataset = self._open()[self._name]
            if dataset.chunks is None:
                raise ArchiveError(f"{dataset.file.filename}: {self._name} has no checksums")
            whole = dataset[first : first + len(out)]
        self._checksums.compare(first, whole)
        out[...] = whole[(slice(None), *part)] if part else whole


class ChunkRows:
    """Rows of a chunked dataset, out of the chunks where they lie in the file as they are.

    Version 1 wrote them so, with HDF5's Fletcher-32 behind each; the digest of its whole shard is
    compared before. No lock is held, unlike with `Hdf5Rows`.
    """

    def __init__(self, file: mmap.mmap | OpenFile, dataset: h5py.Dataset) -> None:
        """Take the places of a dataset's chunks; see `ChunkRows.fits`."""
        self._file, self._dtype = file, dataset.dtype
        self._shape, self._chunk, self._fill = dataset.shape, dataset.chunks, dataset.fillvalue
        self._places: dict[tuple[int, ...], int] = {}
        dataset.id.chunk_iter(
            lambda chunk: self._places.__setitem__(chunk.chunk_offset, chunk.byte_offset)
        )

    @staticmethod
    def fits(dataset: h5py.Dataset, like: Array) -> bool:
        """Tell whether a dataset's chunks are the values as they are, of the shape of `like`."""
        filters = dataset.id.get_create_plist().get_nfilters()
        same = dataset.shape == like.shape and dataset.dtype == like.dtype
        return bool(dataset.chunks and same and filters == (1 if dataset.fletcher32 else 0))

    def read(self, first: int, out: Array, part: Part = ()) -> None:
        """See `RowReader.read`."""
        if part:
            _take_part(self, self._shape[1:], first, out, part)
            return
        step = self._chunk[0]
        starts = range(first // step * step, first + len(out), step)
        others = [range(0, n, c) for n, c in zip(self._shape[1:], self._chunk[1:], strict=True)]
        for offset in itertools.product(starts, *others):
            begin, end = max(first, offset[0]), min(first + len(out), offset[0] + step)
            ends = (at + size for at, size in zip(offset[1:], self._chunk[1:], strict=True))
            to = out[(slice(begin - first, end - first), *map(slice, offset[1:], ends))]
            rows = slice(begin - offset[0], end - offset[0])
            to[...] = self._values(offset)[(rows, *map(slice, to.shape[1:]))]

    def _values(self, offset: tuple[int, ...]) -> Array:
        """Return a chunk's values; one that was never written is all fill value."""
        place = self._places.get(offset)
        if place is None:
            return np.broadcast_to(self._fill, self._chunk)
        if isinstance(self._file, OpenFile):
            found = np.empty(self._chunk, self._dtype)
            self._file.read_into(found, place)
            return found
        count = math.prod(self._chunk)
        return np.frombuffer(self._file, self._dtype, count, place).reshape(self._chunk)


class OpenFile:
    """A file to read from at any offset, by any thread; closed with the last reference."""

    def __init__(self, path: Path) -> None:
        """Open it."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        """Close it."""
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def mapped(self) -> mmap.mmap:
        """Return the whole file as memory."""
        return mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)

    def read_into(self, out: Array, offset: int) -> None:
        """Fill a contiguous array from an offset on.

        Raises:
            OSError: when the file cannot be read, or ends before.
        """
        content = out.data.cast("B")
        while content:
            count = os.preadv(self._descriptor, [content], offset)
            if count == 0:
                raise OSError("the file ends too early")
            content, offset = content[count:], offset + count
