"""The footer: JSON at the end of every HDF5 file of an archive, the table of its contents.

Readers of this package use the footer alone and parse no HDF5: a damaged or crafted HDF5 structure
cannot reach them, and no lock is held. HDF5 and its tools ignore what follows their content.

`schema.py` specifies the footer. Digests are XXH3 (https://xxhash.com): they detect damage, not
forgery. So every offset and length is checked against the file's size before it is used.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest, xxh3_128, xxh3_128_hexdigest

from pipeline.archive.format import schema
from pipeline.archive.format.file_bytes import FileBytes
from pipeline.archive.format.stored_type import bits_type
from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveError

Extent = tuple[int, int]
"""Offset and length in bytes."""

MAGIC = b"FMFOOT01"
TAIL = struct.Struct("<QQ8s")
"""Length and XXH3-64 of the text, magic."""
DIGEST_PREFIX = "xxh3-128:"
_LONGEST = 512 * 2**20
_READ = 4 * 2**20
_FIRST_READ = 2**16
_DTYPES = frozenset(("uint8", "int64", "uint64", "bfloat16", "float16", "float32", "float64"))
_MOST_VALUES = 2**50


@dataclass(frozen=True, kw_only=True)
class Table:
    """Where the values of a dataset lie, little-endian and in C order.

    Attributes:
        shape: of the dataset.
        dtype: name of the NumPy type of a value, or `bfloat16`.
        extents: one of contiguous data; those of the chunks of compressed data, in C order of their
            positions in the dataset.
        chunk: shape of a chunk; empty for contiguous data. Chunks at an edge are padded.
        codec: of the chunks.
        digest: see `digest_of`; empty for rows, which have a checksum each.
    """

    shape: tuple[int, ...]
    dtype: str
    extents: tuple[Extent, ...]
    chunk: tuple[int, ...] = ()
    codec: str = "none"
    digest: str = ""

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Table:
        """Return the table that a footer's JSON describes."""
        return cls(
            shape=tuple(content["shape"]),
            dtype=content["dtype"],
            extents=tuple((int(at), int(length)) for at, length in content["extents"]),
            chunk=tuple(content["chunk"]),
            codec=content["codec"],
            digest=content["digest"],
        )

    @property
    def bits_type(self) -> np.dtype[Any]:
        """NumPy type of the numbers in the file."""
        return bits_type(self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, not compressed."""
        return math.prod(self.shape[1:]) * self.bits_type.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along every axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    def digest_of(self, values: Array) -> str:
        """Return the digest of this table's values, which covers shape and type too.

        Args:
            values: contiguous, of any shape.
        """
        digest = xxh3_64(f"{list(self.shape)} {self.dtype} ".encode())
        digest.update(values.data)
        return digest.hexdigest()

    def check(self, size: int) -> None:
        """Check that the table is possible in a file of `size` bytes.

        Raises:
            ValueError: when it is not.
        """
        whole = all(type(n) is int and n >= 0 for n in self.shape)
        if self.dtype not in _DTYPES or not whole or math.prod(self.shape) > _MOST_VALUES:
            raise ValueError(f"a dataset of type {self.dtype} and shape {self.shape}")
        if any(min(extent) < 0 or sum(extent) > size for extent in self.extents):
            raise ValueError("places outside of the file")
        if not self.chunk:
            expected = math.prod(self.shape) * self.bits_type.itemsize
            if len(self.extents) != 1 or self.extents[0][1] != expected:
                raise ValueError(f"not one extent of {expected} bytes")
            return
        if not all(type(n) is int and n > 0 for n in self.chunk):
            raise ValueError(f"chunks of shape {self.chunk}")
        if len(self.extents) != math.prod(self.grid):
            raise ValueError(f"{len(self.extents)} chunks instead of {math.prod(self.grid)}")


class _Tables(Mapping[str, Table]):
    """The tables of a file, parsed and checked when they are used: most readers need a few."""

    def __init__(self, content: dict[str, Any], size: int, path: Path) -> None:
        self._content, self._size, self._path = content, size, path
        self._parsed: dict[str, Table] = {}

    def __getitem__(self, name: str) -> Table:
        """Return a table.

        Raises:
            ArchiveError: when it is not possible in a file of this size.
        """
        table = self._parsed.get(name)
        if table is None:
            content = self._content[name]
            try:
                table = Table.parse(content)
                table.check(self._size)
            except (ValueError, KeyError, TypeError) as error:
                raise damaged(self._path, error) from error
            self._parsed[name] = table
        return table

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


@dataclass(frozen=True, kw_only=True)
class Footer:
    """The content of a footer.

    Attributes:
        fingerprint: of the archive.
        start, stop: rows that the file holds.
        tables: HDF5 path → where the values of that dataset lie.
        texts: name → offset, length and XXH3-64 of JSON text behind the HDF5 content: columns of
            the sample table, and of a packed file `manifest`.
        filters: layers whose weights are stored, in execution order.
        rounding: layer → largest relative error of the stored type.
        size: bytes of the HDF5 content and the texts; the footer follows.
        header: XXH3-128 of these bytes without the rows, in hexadecimal.
        digest: of the footer's own text, with its prefix; COMPLETE.json lists it.
    """

    fingerprint: str
    start: int
    stop: int
    tables: Mapping[str, Table]
    texts: Mapping[str, tuple[int, int, str]]
    filters: Sequence[str] = ()
    rounding: Mapping[str, float] = field(default_factory=dict)
    size: int
    header: str
    digest: str = ""

    def to_bytes(self) -> bytes:
        """Return the footer as it ends a file."""
        content = {key: value for key, value in asdict(self).items() if key != "digest"}
        text = json.dumps(content, separators=(",", ":")).encode()
        return text + TAIL.pack(len(text), xxh3_64_intdigest(text), MAGIC)

    @classmethod
    def read(cls, source: FileBytes, path: Path) -> Footer:
        """Read the footer of a file and check that it is whole.

        Raises:
            ArchiveError: when there is none, or it is damaged.
        """
        try:
            last = source.read(max(0, source.size - _FIRST_READ), min(source.size, _FIRST_READ))
            if len(last) < TAIL.size:
                raise ValueError("the file is too short")
            length, checksum, magic = TAIL.unpack(last[-TAIL.size :].tobytes())
            size = source.size - TAIL.size - length
            if magic != MAGIC:
                raise ValueError("it has no footer")
            if length > _LONGEST or size < 0:
                raise ValueError("its footer's length is impossible")
            text = source.read(size, length).tobytes()
            if xxh3_64_intdigest(text) != checksum:
                raise ValueError("its footer is not what was written")
            return cls._parse(text, size, path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(path, error) from error

    @classmethod
    def _parse(cls, text: bytes, size: int, path: Path) -> Footer:
        content = json.loads(text)
        texts = {
            name: (int(at), int(length), str(digest))
            for name, (at, length, digest) in content["texts"].items()
        }
        footer = cls(
            fingerprint=content["fingerprint"],
            start=int(content["start"]),
            stop=int(content["stop"]),
            tables=_Tables(dict(content["tables"]), size, path),
            texts=texts,
            filters=[str(layer) for layer in content["filters"]],
            rounding={layer: float(error) for layer, error in content["rounding"].items()},
            size=int(content["size"]),
            header=content["header"],
            digest=DIGEST_PREFIX + xxh3_128_hexdigest(text),
        )
        if footer.size != size:
            raise ValueError("the file's length is not what was written")
        if any(at < 0 or length < 0 or at + length > size for at, length, _ in texts.values()):
            raise ValueError("texts outside of the file")
        return footer


def damaged(path: Path, cause: object) -> ArchiveError:
    """Return the error for a damaged file, with its remedy."""
    shard = path.parent.name == schema.SHARDS
    remedy = "; delete it and run the extraction again to rewrite it" if shard else ""
    return ArchiveError(f"{path}: damaged {'shard' if shard else 'file'} ({cause}){remedy}")


def header_digest(source: FileBytes, size: int, tables: Mapping[str, Table]) -> str:
    """Return the digest of a file's first `size` bytes without the rows (tables without digest)."""
    rows = [extent for table in tables.values() if not table.digest for extent in table.extents]
    digest = xxh3_128()
    for start, stop in gaps(size, rows):
        for offset in range(start, stop, _READ):
            digest.update(source.read(offset, min(_READ, stop - offset)).data)
    return digest.hexdigest()


def gaps(size: int, left_out: Sequence[Extent]) -> Iterator[Extent]:
    """Yield start and stop of what lies between extents.

    >>> list(gaps(10, [(6, 2), (1, 2), (3, 1)]))
    [(0, 1), (4, 6), (8, 10)]
    """
    end = 0
    for offset, length in sorted(left_out):
        if offset > end:
            yield end, offset
        end = max(end, offset + length)
    if end < size:
        yield end, size
