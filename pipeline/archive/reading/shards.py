"""The rows of an archive across its files; each file is checked and opened once.

A file's footer is compared with the manifest before its first row is read, and every row with its
checksum. All ranges of a read from an object store are requested at once.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import wait
from functools import partial
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.footer import damaged
from pipeline.archive.format.jpeg import JpegRows
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.rows import CompressedRows, Part, RowReader, row_threads
from pipeline.archive.format.shard_check import check_footer
from pipeline.archive.format.stored_type import value_type
from pipeline.common.arrays import Array
from pipeline.common.errors import one_line
from pipeline.common.object_path import ObjectPath
from pipeline.common.places import Place, mapped

_OPEN_FILES = 256
_IN_MEMORY = 64 * 2**20
"""Bytes that are fetched from an object store at a time."""
_WORTH_THREADS = 4 * 2**20
"""Bytes above which starting threads pays off."""
_SMALL_ROW = 2**15
"""Bytes of a row up to which gathering rows with an extra copy is faster than single reads."""
_LARGE_ROW = 2**19
"""Bytes of a row from which threads gain more than they wait for each other."""


class Shards:
    """The rows of the datasets that every shard has.

    Args:
        files: of the manifest's shards, in order.
        manifest: of the archive.
        digests: file name → digest of the file's footer, as listed in COMPLETE.json.
        check: whether to compare digests and checksums.
    """

    def __init__(
        self, files: Sequence[Place], manifest: Manifest, digests: Mapping[str, str], *, check: bool
    ) -> None:
        self._paths, self._manifest, self._digests = files, manifest, digests
        self._check = check
        self._starts = [start for start, _ in manifest.shards]
        self._datasets = manifest.row_datasets
        self._lock = threading.Lock()
        self._opening = [threading.RLock() for _ in files]
        self._files: OrderedDict[int, ArchiveFile] = OrderedDict()
        self._readers: dict[tuple[int, str], RowReader] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: the receiving process opens the files itself."""
        arguments = (self._paths, self._manifest, self._digests)
        return partial(type(self), check=self._check), arguments

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            self._readers.clear()
            self._files.clear()  # each closes with the last array that is a view of it

    def __len__(self) -> int:
        return self._manifest.shards[-1][1] if self._manifest.shards else 0

    def fetched(self, _: Iterable[tuple[str, Sequence[int]]]) -> Shards:
        """Return shards from which datasets' rows are read without waiting for a store."""
        return self

    def read(self, name: str, start: int, stop: int, part: Part = ()) -> Array:
        """Return the rows start..stop of a dataset, at least one; see `Archive.read_rows`."""
        self._reader(self._shard_of(start), name)  # compares the shape with the file
        dataset = self._datasets[name]
        shape = dataset.shape
        if part:
            shape = np.broadcast_to(np.empty(()), shape)[part].shape
        out = rest = np.empty((stop - start, *shape), value_type(dataset.dtype))
        while len(rest):
            number = self._shard_of(start)
            count = self._manifest.shards[number][1] - start
            self._read(number, name, start, rest[:count], part)
            start, rest = start + count, rest[count:]
        return out

    def read_into(
        self, name: str, rows: Sequence[int], out: Array, places: Sequence[int] | None = None,
        *, threads: int,
    ) -> None:  # fmt: skip
        """Read rows in any order; see `Archive.read_into`."""
        places = range(len(rows)) if places is None else places
        size = out[:1].nbytes
        many = len(rows) > 1
        if many and isinstance(self._reader(self._shard_of(rows[0]), name), CompressedRows):
            self._gather(name, np.asarray(rows), out, np.asarray(places))
            return
        if many and threads > 1 and size >= _LARGE_ROW and len(rows) * size >= _WORTH_THREADS:
            shares = [slice(i, None, threads) for i in range(threads)]
            futures = [
                row_threads().submit(
                    self.read_into, name, rows[share], out, places[share], threads=1
                )
                for share in shares
            ]
            wait(futures)
            for future in futures:
                future.result()
            return
        if size <= _SMALL_ROW and many:
            self._gather(name, np.asarray(rows), out, np.asarray(places))
            return
        for index, row in zip(places, rows, strict=True):
            self._read(self._shard_of(row), name, row, out[index : index + 1])

    def jpeg(self, row: int) -> bytes:
        """Return the JPEG file of a row's input; see `Archive.jpeg`."""
        number = self._shard_of(row)
        reader = self._reader(number, schema.JPEG_ROWS)
        assert isinstance(reader, JpegRows)
        try:
            return reader.content(row - self._starts[number])
        except OSError as error:
            raise damaged(self._paths[number], f"at row {row}: {error}") from error

    def file(self, number: int) -> ArchiveFile:
        """Return the file of a shard after comparing its footer with the manifest."""
        with self._opening[number]:
            file = self._files.get(number)
            if file is None:
                path = self._paths[number]
                digest = self._digests.get(path.name, "")
                file = ArchiveFile(path, check=self._check, digest=digest)
                check_footer(path, file.footer, self._manifest, *self._manifest.shards[number])
                with self._lock:
                    self._files[number] = file
                    if len(self._files) > _OPEN_FILES:
                        oldest, _ = self._files.popitem(last=False)
                        self._readers = {k: v for k, v in self._readers.items() if k[0] != oldest}
        return file

    def _shard_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _gather(self, name: str, rows: Array, out: Array, places: Array) -> None:
        """Read small rows, grouped by shard."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            selected = numbers == number
            in_file = rows[selected] - self._starts[number]
            try:
                self._reader(number, name).gather(in_file, out, places[selected])
            except (OSError, ValueError) as error:
                raise damaged(self._paths[number], f"at {name}: {error}") from error

    def _read(self, number: int, name: str, start: int, out: Array, part: Part = ()) -> None:
        try:
            self._reader(number, name).read(start - self._starts[number], out, part)
        except (OSError, ValueError) as error:
            where = f"row {start}" if len(out) == 1 else f"rows {start} to {start + len(out) - 1}"
            cause = one_line(error, limit=200)
            raise damaged(self._paths[number], f"at {where} of {name}: {cause}") from error

    def _reader(self, number: int, name: str) -> RowReader:
        reader = self._readers.get((number, name))
        if reader is None:
            with self._opening[number]:
                reader = self._readers.get((number, name))
                if reader is None:
                    shape = self._datasets[name].shape
                    reader = self.file(number).rows(name, self._starts[number], shape)
                    with self._lock:
                        self._readers[number, name] = reader
        return reader


class RemoteShards(Shards):
    """Shards whose rows are fetched into memory, and read from there."""

    def fetched(self, requests: Iterable[tuple[str, Sequence[int]]]) -> Shards:
        starts = np.asarray(self._starts)
        parts = []
        for name, rows in requests:
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
        blocks = [
            self.fetched([(name, rows)]).read(name, rows[0], rows[-1] + 1, part)
            for rows in self._blocks(name, range(start, stop))
        ]
        return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]

    def read_into(
        self, name: str, rows: Sequence[int], out: Array, places: Sequence[int] | None = None,
        *, threads: int,
    ) -> None:  # fmt: skip
        places = range(len(rows)) if places is None else places
        for block in self._blocks(name, range(len(rows))):
            some = rows[block.start : block.stop]
            shards = self.fetched([(name, some)])
            shards.read_into(name, some, out, places[block.start : block.stop], threads=threads)

    def jpeg(self, row: int) -> bytes:
        return self.fetched([(schema.JPEG_ROWS, [row])]).jpeg(row)

    def _blocks(self, name: str, rows: range) -> Iterable[range]:
        dataset = self._datasets[name]
        row_bytes = math.prod(dataset.shape) * value_type(dataset.dtype).itemsize
        step = max(1, _IN_MEMORY // max(1, row_bytes))
        return (rows[i : i + step] for i in range(0, len(rows), step))


def open_shards(
    files: Sequence[Place], manifest: Manifest, digests: Mapping[str, str], *, check: bool
) -> Shards:
    """Return the shards of files or objects; see `Shards`."""
    kind = RemoteShards if isinstance(files[0], ObjectPath) else Shards
    return kind(files, manifest, digests, check=check)
