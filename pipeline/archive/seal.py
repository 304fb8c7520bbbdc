"""The seal: text behind the HDF5 content of a shard, by which a reader finds and checks everything.

HDF5 cannot be trusted with a damaged file (on one whose tail is zeros it loops for ever), and it
reads rows under a lock. So the places of all rows stand in the seal, with a digest of everything
that is not rows: names, tables, statistics, and the rows' own checksums. HDF5 and its tools ignore
what follows their content.

Digests are XXH3 (https://xxhash.com): against damage, not against forgers.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_hexdigest

from pipeline.archive import schema
from pipeline.foundation.atomic_files import write_at
from pipeline.foundation.errors import ArchiveError

Extent = tuple[int, int]
"""Offset and length in bytes."""

_MAGIC = b"FMSEAL02"
_TAIL = struct.Struct("<QQ8s")  # length and XXH3-64 of the text, magic
_LONGEST = 256 * 2**20
_READ = 4 * 2**20
PREFIX = "xxh3-128:"
"""Of a seal's digest in COMPLETE.json, where shards of version 1 have their sha256."""


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What the seal of a file says.

    Attributes:
        fingerprint: of the archive.
        start, stop: the rows that the file holds.
        size: of the HDF5 content in bytes; the seal follows.
        header: XXH3-128 of everything in it that is not rows, in hexadecimal.
        rows: dataset → where its rows lie, one after another.
        chunks: compressed dataset → where its chunks lie, in the file's order.
        tables: dataset → where the values lie: checksums and figures per sample.
        digest: of the seal itself; COMPLETE.json has it.
    """

    fingerprint: str
    start: int
    stop: int
    size: int
    header: str
    rows: Mapping[str, Extent]
    chunks: Mapping[str, Sequence[Extent]]
    tables: Mapping[str, Extent]
    digest: str = ""


def is_sealed(path: Path) -> bool:
    """Tell whether a file ends as a sealed one does."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_MAGIC), os.SEEK_END)
            return file.read() == _MAGIC
    except OSError:
        return False


def put_seal(path: Path, file: h5py.File, names: Sequence[str], tables: Sequence[str]) -> None:
    """Close a file whose content is written, and seal it.

    Args:
        path: of the file.
        file: open for writing.
        names: its datasets of rows.
        tables: the others that are to be found without HDF5.
    """
    file.flush()
    chunked = [name for name in names if file[name].chunks]
    rows = {name: _extent(file[name]) for name in names if name not in chunked}
    found: dict[str, Any] = {
        "fingerprint": str(file.attrs["fingerprint"]),
        "start": int(file.attrs["start"]),
        "stop": int(file.attrs["stop"]),
        "rows": rows,
        "chunks": {name: _chunks(file[name]) for name in chunked},
        "tables": {name: _extent(file[name]) for name in tables},
    }
    file.close()
    size = path.stat().st_size
    left_out = _rows_of(rows, found["chunks"])
    with path.open("r+b") as raw:
        found |= {"size": size, "header": _digest_around(raw.fileno(), size, left_out)}
        text = json.dumps(found).encode()
        tail = _TAIL.pack(len(text), xxh3_64_intdigest(text), _MAGIC)
        write_at(raw.fileno(), memoryview(text + tail), size)


def read_seal(path: Path) -> Seal:
    """Read the seal of a file, and check that it is whole.

    Raises:
        ArchiveError: when there is none, or it is damaged.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(end - _TAIL.size)
            length, checksum, magic = _TAIL.unpack(file.read(_TAIL.size))
            if magic != _MAGIC or not 0 < length <= min(_LONGEST, end - _TAIL.size):
                raise ValueError("its end is not that of a shard")
            file.seek(end - _TAIL.size - length)
            text = file.read(length)
        if xxh3_64_intdigest(text) != checksum:
            raise ValueError("its seal was changed")
        found = json.loads(text)
        seal = Seal(
            fingerprint=str(found["fingerprint"]),
            header=str(found["header"]),
            **{name: int(found[name]) for name in ("start", "stop", "size")},
            rows={name: _pair(one) for name, one in found["rows"].items()},
            chunks={name: [_pair(one) for one in some] for name, some in found["chunks"].items()},
            tables={name: _pair(one) for name, one in found["tables"].items()},
            digest=PREFIX + xxh3_128_hexdigest(text),
        )
        if seal.size != end - _TAIL.size - length:
            raise ValueError("its length is not what was written")
        places = [*_rows_of(seal.rows, seal.chunks), *seal.tables.values()]
        if any(at < 0 or length < 0 or at + length > seal.size for at, length in places):
            raise ValueError("its seal names places outside of it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ArchiveError(
            f"{path}: damaged shard ({error}); delete it and run the extraction again to make it "
            "anew"
        ) from error
    return seal


def check_header(path: Path, seal: Seal) -> None:
    """Compare everything in a file that is not rows with its seal.

    Raises:
        ArchiveError: when it is not what was written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        left_out = _rows_of(seal.rows, seal.chunks)
        same = _digest_around(descriptor, seal.size, left_out) == seal.header
    except OSError as error:
        raise ArchiveError(f"{path}: damaged shard, it cannot be read ({error})") from error
    finally:
        os.close(descriptor)
    if not same:
        raise ArchiveError(
            f"{path}: damaged shard, its tables or structure are not what was written (XXH3); "
            "delete it and run the extraction again to make it anew"
        )


def checksum_name(rows: str) -> str:
    """Return the dataset that holds the checksums of a dataset of rows.

    >>> checksum_name("/layers/conv1/activation")
    '/layers/conv1/checksum'
    """
    return f"{rows.rpartition('/')[0]}/{schema.CHECKSUM}"


def _digest_around(descriptor: int, size: int, left_out: Sequence[Extent]) -> str:
    """Return the digest of a file's first `size` bytes but for some extents."""
    digest = xxh3_128()
    for start, stop in _gaps(size, left_out):
        for offset in range(start, stop, _READ):
            wanted = min(_READ, stop - offset)
            piece = os.pread(descriptor, wanted, offset)
            digest.update(piece)
            if len(piece) < wanted:
                return ""  # cut short
    return digest.hexdigest()


def _gaps(size: int, left_out: Sequence[Extent]) -> Iterator[Extent]:
    """Yield start and stop of what lies between extents.

    >>> list(_gaps(10, [(6, 2), (1, 2), (3, 1)]))
    [(0, 1), (4, 6), (8, 10)]
    """
    at = 0
    for offset, length in sorted(left_out):
        if offset > at:
            yield at, offset
        at = max(at, offset + length)
    if at < size:
        yield at, size


def _extent(dataset: h5py.Dataset) -> Extent:
    offset = dataset.id.get_offset()
    assert offset is not None, f"{dataset.name} has no place of its own"
    return int(offset), int(dataset.id.get_storage_size())


def _chunks(dataset: h5py.Dataset) -> list[Extent]:
    """Return where a dataset's chunks lie, neighbours as one."""
    found: list[Extent] = []
    dataset.id.chunk_iter(lambda chunk: found.append((chunk.byte_offset, chunk.size)))
    merged: list[Extent] = []
    for offset, length in sorted(found):
        if merged and sum(merged[-1]) == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((offset, length))
    return merged


def _pair(found: Any) -> Extent:
    offset, length = found
    return int(offset), int(length)


def _rows_of(rows: Mapping[str, Extent], chunks: Mapping[str, Sequence[Extent]]) -> list[Extent]:
    """Return where all rows lie, compressed ones too."""
    return [*rows.values(), *(one for some in chunks.values() for one in some)]
