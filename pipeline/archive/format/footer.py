"""The footer: a JSON table of contents at the end of every HDF5 file of an archive.

Readers of this package use only the footer and do not parse HDF5: a damaged or crafted HDF5
structure cannot crash them, and no lock is held. HDF5 and its tools ignore trailing bytes.

`schema.py` specifies the footer. Digests are XXH3 (https://xxhash.com): they detect damage, not
forgery, so every offset and length is checked against the file size before use.
"""

from __future__ import annotations

import json
import math
import shlex
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest, xxh3_128, xxh3_128_hexdigest

from pipeline.archive.format import schema
from pipeline.archive.format.file_bytes import Extent, FileBytes
from pipeline.archive.format.object_bytes import ByteSource, ObjectBytes
from pipeline.archive.format.stored_type import bits_type
from pipeline.common.arrays import Array
from pipeline.common.disk_cache import forget
from pipeline.common.errors import ArchiveError
from pipeline.common.places import Place

MAGIC = b"FMFOOT01"
TAIL = struct.Struct("<QQ8s")
"""Length and XXH3-64 of the JSON text, then the magic number."""
DIGEST_PREFIX = "xxh3-128:"
_LONGEST = 512 * 2**20
_READ = 4 * 2**20
_FIRST_READ = 2**16
_DTYPES = frozenset(("uint8", "int64", "uint64", "bfloat16", "float16", "float32", "float64"))
_MOST_VALUES = 2**50


@dataclass(frozen=True, kw_only=True)
class Table:
    """Location of the values of a dataset, little-endian and in C order.

    Attributes:
        shape: of the dataset.
        dtype: name of the NumPy type of a value, or `bfloat16`.
        extents: a single one for contiguous data; one per chunk for compressed data, in C order of
            the chunks' positions in the dataset.
        chunk: shape of a chunk; empty for contiguous data. Chunks at an edge are padded.
        codec: of the chunks.
        digest: see `digest_of`; empty for rows, which have one checksum each.
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
        """NumPy type of the values in the file."""
        return bits_type(self.dtype)

    @property
    def row_bytes(self) -> int:
        """Uncompressed bytes of one row."""
        return math.prod(self.shape[1:]) * self.bits_type.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along every axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    def digest_of(self, values: Array) -> str:
        """Return the digest of this table's contiguous values, with its shape and type."""
        digest = xxh3_64(f"{list(self.shape)} {self.dtype} ".encode())
        digest.update(values.data)
        return digest.hexdigest()

    def check(self, size: int) -> None:
        """Raise ValueError if the table is not valid for a file of `size` bytes."""
        valid_shape = all(type(n) is int and n >= 0 for n in self.shape)
        if self.dtype not in _DTYPES or not valid_shape or math.prod(self.shape) > _MOST_VALUES:
            raise ValueError(f"invalid dataset of type {self.dtype} and shape {self.shape}")
        if any(min(extent) < 0 or sum(extent) > size for extent in self.extents):
            raise ValueError("extents outside the file")
        if not self.chunk:
            expected = math.prod(self.shape) * self.bits_type.itemsize
            if len(self.extents) != 1 or self.extents[0][1] != expected:
                raise ValueError(f"expected a single extent of {expected} bytes")
            return
        if not all(type(n) is int and n > 0 for n in self.chunk):
            raise ValueError(f"invalid chunk shape {self.chunk}")
        if len(self.extents) != math.prod(self.grid):
            raise ValueError(f"expected {math.prod(self.grid)} chunks, got {len(self.extents)}")


class _Tables(Mapping[str, Table]):
    """The tables of a file, parsed and checked on first use: most readers need a few."""

    def __init__(self, content: dict[str, Any], size: int, path: Place) -> None:
        self._content, self._size, self._path = content, size, path
        self._parsed: dict[str, Table] = {}

    def __getitem__(self, name: str) -> Table:
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
        start, stop: rows in the file.
        tables: HDF5 path → location of the values of the dataset.
        texts: name → offset, length and XXH3-64 of JSON text after the HDF5 content: columns of
            the sample table, and `manifest` in a packed file.
        filters: layers whose weights are stored, in execution order.
        rounding: layer → largest relative error of the stored type.
        size: bytes of the HDF5 content and the texts; the footer follows.
        header: XXH3-128 of these bytes without the rows, in hexadecimal.
        digest: of the footer's text, with its prefix, as listed in COMPLETE.json.
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
        """Return the footer as bytes to append to a file."""
        content = {key: value for key, value in asdict(self).items() if key != "digest"}
        text = json.dumps(content, separators=(",", ":")).encode()
        return text + TAIL.pack(len(text), xxh3_64_intdigest(text), MAGIC)

    @classmethod
    def read(cls, source: FileBytes | ObjectBytes, path: Place) -> Footer:
        """Read and check the footer of a file."""
        try:
            end = source.read(max(0, source.size - _FIRST_READ), min(source.size, _FIRST_READ))
            tail = end[-TAIL.size :].tobytes().rjust(TAIL.size, b"\0")
            length, checksum, magic = TAIL.unpack(tail)
            size = source.size - TAIL.size - length
            if magic != MAGIC:
                start = source.read(0, min(8, source.size)).tobytes()
                if start != b"\x89HDF\r\n\x1a\n" and path.parent.name != schema.SHARDS:
                    raise ArchiveError(
                        f"{path}: not an archive (it has no footer and no HDF5 header)"
                    )
                raise ValueError("it has no footer: it was cut off, or another program wrote to it")
            if length > _LONGEST or size < 0:
                raise ValueError("its footer has an invalid length")
            text = source.read(size, length).tobytes()
            if xxh3_64_intdigest(text) != checksum:
                raise ValueError("its footer does not match its checksum")
            return cls._parse(text, size, path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(path, error) from error

    @classmethod
    def _parse(cls, text: bytes, size: int, path: Place) -> Footer:
        content = json.loads(text)
        texts = {
            name: (int(offset), int(length), str(digest))
            for name, (offset, length, digest) in content["texts"].items()
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
            raise ValueError("the file size does not match the footer")
        if any(min(offset, length) < 0 or offset + length > size
               for offset, length, _ in texts.values()):  # fmt: skip
            raise ValueError("texts outside the file")
        return footer


def damaged(path: Place, cause: object) -> ArchiveError:
    """Return the error for a damaged file, with its remedy; what is cached of it is deleted."""
    forget(path)
    shard, remedy = path.parent.name == schema.SHARDS, ""
    if shard:
        remedy = "; delete it and run the extraction again to rewrite it"
    elif path.name == schema.INDEX:
        remedy = f"; delete it and run: featuremaps stitch {shlex.quote(str(path.parent))}"
    return ArchiveError(f"{path}: damaged {'shard' if shard else 'file'} ({cause}){remedy}")


def header_digest(source: ByteSource, size: int, tables: Mapping[str, Table]) -> str:
    """Return the digest of a file's first `size` bytes without rows (tables without a digest)."""
    rows = [extent for table in tables.values() if not table.digest for extent in table.extents]
    digest = xxh3_128()
    for start, stop in gaps(size, rows):
        for offset in range(start, stop, _READ):
            digest.update(source.read(offset, min(_READ, stop - offset)).data)
    return digest.hexdigest()


def gaps(size: int, left_out: Sequence[Extent]) -> Iterator[Extent]:
    """Yield start and stop of the gaps between extents.

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
