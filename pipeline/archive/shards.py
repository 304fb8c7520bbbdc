"""Shards: rows of an archive's files, read past HDF5 where they lie there as they are.

Every row that is read is compared with its checksum; nothing else is read. Shards of version 1, and
compressed layers, are read through HDF5, one thread at a time.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from xxhash import xxh3_64_intdigest

from pipeline.archive import schema
from pipeline.archive.digest import check_digest
from pipeline.archive.manifest import Manifest
from pipeline.archive.safety import damage_named, open_safely
from pipeline.archive.seal import Seal, check_header, checksum_name, is_sealed, read_seal
from pipeline.errors import ArchiveError

Array = np.ndarray[Any, np.dtype[Any]]
Part = tuple[int | slice, ...]

_OPEN_FILES = 256
_OPEN_IN_HDF5 = 32


class OpenFile:
    """A file to read from at any offset, by any thread; closed with the last reference."""

    def __init__(self, path: Path) -> None:
        """Open it."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        """Close it."""
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

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
        self._checksums: dict[tuple[int, str], Array] = {}
        self._files: OrderedDict[int, OpenFile] = OrderedDict()
        self._in_hdf5: OrderedDict[int, h5py.File] = OrderedDict()

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            for file in self._in_hdf5.values():
                file.close()
            self._in_hdf5.clear()
            self._files.clear()

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
        if self.number_of(start) == self.number_of(stop - 1) and part:
            return self._read(self.number_of(start), name, start, stop, part, None)
        out = np.empty((stop - start, *shape), dtype)
        at = start
        while at < stop:
            number = self.number_of(at)
            end = min(stop, self._manifest.shards[number][1])
            self._read(number, name, at, end, (), out[at - start : end - start])
            at = end
        return np.ascontiguousarray(out[(slice(None), *part)]) if part else out

    def read_into(self, name: str, rows: Array, out: Array) -> None:
        """Read rows in any order into `out`, `(row, …)` contiguous and of the stored type."""
        for place, row in enumerate(rows.tolist()):
            self._read(self.number_of(row), name, row, row + 1, (), out[place : place + 1])

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

    def _read(
        self, number: int, name: str, start: int, stop: int, part: Part, out: Array | None
    ) -> Array:
        """Read rows of one shard, into `out` where it is given."""
        path = self._file_of(number)
        where = f"row {start}" if stop == start + 1 else f"rows {start} to {stop - 1}"
        with damage_named(f"{path}: damaged at {where} of {name}"):
            seal = self.check(number)
            first = self._starts[number]
            extent = None if seal is None else seal.rows.get(name) or seal.tables.get(name)
            if seal is not None and extent is not None:
                shape, dtype = self._shapes[name]
                whole = np.empty((stop - start, *shape), dtype) if out is None else out
                size = whole[:1].nbytes
                self._open(number).read_into(whole, extent[0] + (start - first) * size)
            else:
                whole = self._through_hdf5(number, name, start - first, stop - first)
            if self._check and seal is not None and name not in seal.tables:
                sums = self._sums(number, name, seal)[start - first : stop - first]
                compare_checksums(whole, sums, start, path, name)
        if out is not None:
            if out is not whole:
                out[...] = whole
            return out
        return np.ascontiguousarray(whole[(slice(None), *part)]) if part else whole

    def _sums(self, number: int, name: str, seal: Seal) -> Array:
        with self._lock:
            if (number, name) not in self._checksums:
                start, stop = self._manifest.shards[number]
                sums = np.empty(stop - start, np.uint64)
                self._open(number).read_into(sums, seal.tables[checksum_name(name)][0])
                self._checksums[number, name] = sums
            return self._checksums[number, name]

    def _open(self, number: int) -> OpenFile:
        with self._lock:
            if number in self._files:
                self._files.move_to_end(number)
                return self._files[number]
            file = self._files[number] = OpenFile(self._file_of(number))
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
            return file

    def _through_hdf5(self, number: int, name: str, start: int, stop: int) -> Array:
        with self._lock:
            if number in self._in_hdf5:
                self._in_hdf5.move_to_end(number)
            else:
                file = open_safely(self._file_of(number), own=self._packed)
                fingerprint = self._manifest.fingerprint_at(self._starts[number])
                if file.attrs.get("fingerprint") != fingerprint:
                    file.close()
                    raise ArchiveError(f"{self._file_of(number)}: belongs to another archive")
                self._in_hdf5[number] = file
                if len(self._in_hdf5) > _OPEN_IN_HDF5:
                    self._in_hdf5.popitem(last=False)[1].close()
            dataset = self._in_hdf5[number][name]
            if dataset.chunks is None:
                raise ArchiveError(f"{dataset.file.filename}: {name} has no checksums")
            found: Array = dataset[start:stop]
            return found


def row_shapes(manifest: Manifest) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return dataset of rows → shape of a row and type."""
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        schema.IMAGE_ROWS: (tuple(manifest.image_shape), np.dtype("uint8"))
    }
    for layer in manifest.layers:
        shapes[schema.activation_rows(layer.name)] = (layer.shape, np.dtype(layer.dtype))
        for figure in schema.SAMPLE_STATISTICS:
            name = f"{schema.layer_group(layer.name)}/{schema.STATISTICS_GROUP}/{figure}"
            shapes[name] = ((layer.channels,), np.dtype("float32"))
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
    names = {schema.IMAGE_ROWS, *(schema.activation_rows(layer.name) for layer in manifest.layers)}
    lacking = names - seal.rows.keys() - seal.chunks.keys()
    if lacking:
        raise ArchiveError(f"{path}: damaged shard, it lacks {min(lacking)}")


def compare_checksums(rows: Array, sums: Array, start: int, path: Path, name: str) -> None:
    """Compare rows with their checksums.

    Raises:
        ArchiveError: naming file, row and dataset.
    """
    for number, (row, expected) in enumerate(zip(rows, sums.tolist(), strict=True), start):
        if xxh3_64_intdigest(row) != expected:
            raise ArchiveError(
                f"{path}: damaged at row {number} of {name}, it is not what was written (XXH3); "
                "delete the shard and run the extraction again to make it anew"
            )
