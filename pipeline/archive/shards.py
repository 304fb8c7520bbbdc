"""Shards: rows of an archive's files, read past HDF5 where they lie there as they are.

Every row that is read is compared with its checksum; nothing else is read. Of a shard of version 1
the whole is compared once. Compressed layers are read through HDF5, one thread at a time.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.archive import schema
from pipeline.archive.digest import check_digest
from pipeline.archive.layout import row_names
from pipeline.archive.manifest import Manifest
from pipeline.archive.row_reader import (
    Checksums,
    ChunkRows,
    FileRows,
    Hdf5Rows,
    MappedRows,
    OpenFile,
    Part,
    RowReader,
)
from pipeline.archive.safety import damage_named, open_safely
from pipeline.archive.seal import Seal, check_header, checksum_name, is_sealed, read_seal
from pipeline.foundation.arrays import Array
from pipeline.foundation.errors import ArchiveError
from pipeline.foundation.machine import on_local_disk

_OPEN_FILES = 256
_OPEN_IN_HDF5 = 32
_WORTH_THREADS = 4 * 2**20
"""Bytes that are worth starting threads."""
_SMALL_ROW = 2**15
"""Bytes of a row; finding and comparing smaller ones one by one takes longer than copying twice."""
_LARGE_ROW = 2**19
"""Bytes of a row; reading smaller ones, threads wait for each other more than they gain."""


class Shards:
    """The rows of every dataset that all shards of an archive have."""

    def __init__(
        self, path: Path, manifest: Manifest, files: Mapping[str, str], *, check: bool, packed: bool
    ) -> None:
        """Open nothing yet.

        Args:
            path: the archive's folder, or the packed file.
            manifest: of the archive.
            files: shard → digest, as COMPLETE.json has it.
            check: whether digests and checksums are compared.
            packed: whether `path` is one file of all rows.
        """
        self._path, self._manifest, self._digests = path, manifest, files
        self._check, self._packed = check, packed
        self._starts = [start for start, _ in manifest.shards]
        self._shapes = row_shapes(manifest)
        self._lock = threading.RLock()
        self._seals: dict[int, Seal | None] = {}
        self._readers: dict[tuple[int, str], RowReader] = {}
        self._files: OrderedDict[int, mmap.mmap | OpenFile] = OrderedDict()
        self._in_hdf5: OrderedDict[int, h5py.File] = OrderedDict()

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            for file in self._in_hdf5.values():
                file.close()
            self._in_hdf5.clear()
            self._readers.clear()
            self._files.clear()  # they close with the last array that is a view of them

    def number_of(self, row: int) -> int:
        """Return the number of the shard that holds a row."""
        return bisect_right(self._starts, row) - 1

    def trust(self) -> None:
        """Compare no digests of whole shards any more (those of version 1)."""
        for number in range(len(self._starts)):
            if not is_sealed(self._file_of(number)):
                self._seals.setdefault(number, None)

    def read(self, name: str, start: int, stop: int, part: Part = ()) -> Array:
        """Return the rows start..stop of a dataset, not none; see `Archive.read_rows`."""
        shape, dtype = self._shapes[name]
        shape = _part_shape(shape, part) if part else shape
        out = rest = np.empty((stop - start, *shape), dtype)
        while len(rest):
            number = self.number_of(start)
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
        if threads > 1 and size >= _LARGE_ROW and len(rows) * size >= _WORTH_THREADS:
            with ThreadPoolExecutor(threads) as pool:
                parts = [slice(part, None, threads) for part in range(threads)]
                for done in [
                    pool.submit(self.read_into, name, rows[part], out, places[part], threads=1)
                    for part in parts
                ]:
                    done.result()
            return
        if size <= _SMALL_ROW and len(rows) > 1:
            self._gather(name, np.asarray(rows), out, np.asarray(places))
            return
        for place, row in zip(places, rows, strict=True):
            self._read(self.number_of(row), name, row, out[place : place + 1])

    def _gather(self, name: str, rows: Array, out: Array, places: Array) -> None:
        """Read small rows, those of a shard together where it is mapped."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            some, to = rows[numbers == number], places[numbers == number]
            reader = self._readers.get((number, name))
            if not isinstance(reader, MappedRows):  # the first time, or no mapped file
                for row, place in zip(some.tolist(), to.tolist(), strict=True):
                    self._read(number, name, row, out[place : place + 1])
            else:
                reader.gather(some - self._starts[number], out, to)

    def check(self, number: int) -> Seal | None:
        """Return a shard's seal, None for version 1, after comparing its digest, once.

        Raises:
            ArchiveError: when it is not the shard that was written.
        """
        with self._lock:
            if number in self._seals:
                return self._seals[number]
        path = self._file_of(number)
        seal = read_seal(path) if is_sealed(path) or self._is_new(number) else None
        if seal is not None:
            check_seal(path, seal, self._manifest, *self._manifest.shards[number])
        if self._check:
            self._compare(number, path, seal)
        with self._lock:
            self._seals[number] = seal
        return seal

    def _compare(self, number: int, path: Path, seal: Seal | None) -> None:
        if seal is not None:
            check_header(path, seal)
            found = seal.digest
        elif self._packed:
            return  # version 1: its checksums are those of its chunks
        else:
            found = check_digest(path)
        expected = self._digests.get(f"{schema.SHARDS}/{path.name}")
        if not self._packed and found != expected:
            raise ArchiveError(f"{path}: damaged, it is not the shard of {schema.COMPLETE}")

    def _is_new(self, number: int) -> bool:
        digest = self._digests.get(f"{schema.SHARDS}/{self._file_of(number).name}", "")
        return ":" in digest

    def _file_of(self, number: int) -> Path:
        return self._path if self._packed else schema.shard_path(self._path, number)

    def _read(self, number: int, name: str, start: int, out: Array, part: Part = ()) -> None:
        """Read rows of one shard."""
        try:
            reader = self._readers.get((number, name)) or self._reader(number, name)
            reader.read(start - self._starts[number], out, part)
        except ArchiveError:
            raise
        except Exception as error:
            stop = start + len(out)
            where = f"row {start}" if len(out) == 1 else f"rows {start} to {stop - 1}"
            what = f"{self._file_of(number)}: damaged at {where} of {name}"
            with damage_named(what):
                raise error from None

    def _reader(self, number: int, name: str) -> RowReader:
        """Return what reads a dataset of a shard, after the shard's digest was compared."""
        path, (first, stop) = self._file_of(number), self._manifest.shards[number]
        seal = self.check(number)
        with self._lock:
            sums: Array | None = None
            if self._check and seal is not None and name not in seal.tables:
                sums = np.empty(stop - first, np.uint64)
                OpenFile(path).read_into(sums, seal.tables[checksum_name(name)][0])
            checksums = Checksums(path, name, first, sums)
            extent = None if seal is None else seal.rows.get(name) or seal.tables.get(name)
            shape, dtype = self._shapes[name]
            like = np.broadcast_to(np.empty((), dtype), (stop - first, *shape))
            reader: RowReader
            if extent is None:
                open_file = partial(self._open_in_hdf5, number)
                # A packed file of version 1 has no digest but its chunks' own, which HDF5 compares.
                digest_compared = seal is None and self._check and not self._packed
                reader = Hdf5Rows(open_file, self._lock, name, checksums)
                if digest_compared:
                    dataset = open_file()[name]
                    if ChunkRows.fits(dataset, like):
                        reader = ChunkRows(self._open(number), dataset)
            else:
                file = self._open(number)
                if isinstance(file, OpenFile):
                    reader = FileRows(file, extent[0], like, checksums)
                else:
                    reader = MappedRows(file, extent[0], like, checksums)
            self._readers[number, name] = reader
        return reader

    def _open(self, number: int) -> mmap.mmap | OpenFile:
        """Return a file as memory, or to be read where it is not on a disk of this machine."""
        if number not in self._files:
            path = self._file_of(number)
            file = OpenFile(path)
            self._files[number] = file.mapped() if on_local_disk(path) else file
            if len(self._files) > _OPEN_FILES:
                oldest, _ = self._files.popitem(last=False)
                self._readers = {k: v for k, v in self._readers.items() if k[0] != oldest}
        return self._files[number]

    def _open_in_hdf5(self, number: int) -> h5py.File:
        if number in self._in_hdf5:
            self._in_hdf5.move_to_end(number)
            return self._in_hdf5[number]
        file = open_safely(self._file_of(number), own=self._packed)
        if file.attrs.get("fingerprint") != self._manifest.fingerprint_at(self._starts[number]):
            file.close()
            raise ArchiveError(f"{self._file_of(number)}: belongs to another archive")
        self._in_hdf5[number] = file
        if len(self._in_hdf5) > _OPEN_IN_HDF5:
            self._in_hdf5.popitem(last=False)[1].close()
        return file


def _part_shape(shape: tuple[int, ...], part: Part) -> tuple[int, ...]:
    """Return the shape of a part of a row.

    >>> _part_shape((8, 5, 6), (3, slice(0, 4, 2)))
    (2, 6)
    """
    return np.broadcast_to(np.empty(()), shape)[part].shape


def row_shapes(manifest: Manifest) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return dataset of rows → shape of a row and type."""
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        schema.IMAGE_ROWS: (tuple(manifest.image_shape), np.dtype("uint8"))
    }
    for layer in manifest.layers:
        shapes[schema.activation_rows(layer.name)] = (layer.shape, np.dtype(layer.dtype))
        if layer.drawn:
            drawn = (layer.shape[layer.axes.index("token")],)
            shapes[schema.position_rows(layer.name)] = (drawn, np.dtype("int64"))
        for figure in schema.SAMPLE_STATISTICS:
            shapes[schema.statistic(layer.name, figure)] = ((layer.channels,), np.dtype("float32"))
    return shapes


def check_seal(path: Path, seal: Seal, manifest: Manifest, start: int, stop: int) -> None:
    """Check that a seal is of so many rows of an archive, and that its places fit them.

    Raises:
        ArchiveError: naming the file.
    """
    found = (seal.fingerprint, seal.stop - seal.start)
    if found != (manifest.fingerprint_at(start), stop - start):
        raise ArchiveError(f"{path}: belongs to another archive or other rows")
    for name, (shape, dtype) in row_shapes(manifest).items():
        expected = (stop - start) * int(np.prod(shape)) * dtype.itemsize
        extent = seal.rows.get(name) or seal.tables.get(name)
        if extent and extent[1] != expected:
            raise ArchiveError(
                f"{path}: damaged shard, {name} has {extent[1]} bytes, not {expected}"
            )
        rows = name in seal.rows or name in seal.chunks
        if rows and seal.tables.get(checksum_name(name), (0, 0))[1] != (stop - start) * 8:
            raise ArchiveError(f"{path}: damaged shard, {name} has no checksums")
    lacking = row_names(manifest).keys() - seal.rows.keys() - seal.chunks.keys()
    if lacking:
        raise ArchiveError(f"{path}: damaged shard, it lacks {min(lacking)}")
