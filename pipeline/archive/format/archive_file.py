"""One HDF5 file of an archive, read through its footer: tables, texts, rows."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from pipeline.archive.format import schema
from pipeline.archive.format.footer import Footer, damaged, header_digest
from pipeline.archive.format.jpeg import JpegRows
from pipeline.archive.format.object_bytes import ByteSource, Ranges, open_bytes
from pipeline.archive.format.rows import Checksums, CompressedRows, ContiguousRows, RowReader
from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveError
from pipeline.common.places import Place


class ArchiveFile:
    """A shard, archive.h5, or a packed file.

    Args:
        path: of the file.
        check: whether to compare digests and checksums.
        digest: of the footer, if it is known.

    Attributes:
        path, footer, size: of the file.
    """

    def __init__(self, path: Place, *, check: bool = True, digest: str = "") -> None:
        digest = digest if check else ""
        self.path, self._check = path, check
        try:
            self._source = open_bytes(path, digest)
        except FileNotFoundError:
            raise ArchiveError(f"{path}: missing") from None
        except OSError as error:
            raise ArchiveError(f"{path}: cannot be read ({error})") from error
        self.footer, self.size = Footer.read(self._source, path), self._source.size
        if digest not in ("", self.footer.digest):
            raise damaged(path, f"its digest differs from {schema.COMPLETE}")

    def table(self, name: str) -> Array:
        """Return all values of a small contiguous dataset."""
        with self._damage_named(name):
            table = self.footer.tables[name]
            if table.chunk:
                raise ValueError(f"{name} is compressed")
            content = self._source.read(*table.extents[0])
            if self._check and table.digest and table.digest_of(content) != table.digest:
                raise ValueError(f"{name} does not match its digest")
            return np.frombuffer(bytearray(content), table.bits_type).reshape(table.shape)

    def text(self, name: str) -> Any:
        """Return the parsed content of a JSON text."""
        with self._damage_named(name):
            offset, length, digest = self.footer.texts[name]
            content = self._source.read(offset, length)
            if self._check and xxh3_64_hexdigest(content.data) != digest:
                raise ValueError(f"{name} does not match its digest")
            return json.loads(content.tobytes())

    @contextmanager
    def _damage_named(self, name: str) -> Iterator[None]:
        try:
            yield
        except KeyError:
            raise damaged(self.path, f"{name} is missing") from None
        except (OSError, ValueError, RecursionError) as error:
            raise damaged(self.path, error) from error

    def columns(self) -> dict[str, list[Any]]:
        """Return the sample table, column by column."""
        columns = {name: self.text(name) for name in schema.SAMPLE_COLUMNS}
        rows = self.footer.stop - self.footer.start
        for name, values in columns.items():
            kind = int if name in schema.NUMBER_COLUMNS else str
            if not isinstance(values, list) or len(values) != rows or {*map(type, values)} - {kind}:
                raise damaged(self.path, f"column {name} of the sample table")
        return columns

    def filters(self) -> dict[str, Array]:
        """Return layer → weights, `(filter, channel, height, width)`, in execution order."""
        return {name: self.table(schema.filter_weights(name)) for name in self.footer.filters}

    def rows(self, name: str, start: int, shape: tuple[int, ...] = ()) -> RowReader:
        """Return the reader of a dataset of rows.

        Args:
            name: HDF5 path of the dataset.
            start: first row of the file in the archive (for messages).
            shape: of a row; required for JPEG files, others have it in the footer.
        """
        table = self.footer.tables[name]
        sums = None
        source: ByteSource = self._source
        if self._check and not table.digest:
            sums = self.table(schema.checksum_path(name))
        elif self._check:
            values = self.table(name)
            if source.mapped is None:
                content = values.reshape(-1).view(np.uint8)
                source = Ranges([(table.extents[0][0], content)])
        checksums = Checksums(self.path, name, start, sums)
        if name == schema.JPEG_ROWS:
            offsets = self.table(schema.JPEG_OFFSETS)
            with self._damage_named(name):
                return JpegRows(self._source, table, checksums, offsets, shape)
        kind = CompressedRows if table.chunk else ContiguousRows
        return kind(source, table, checksums)

    def check_header(self) -> None:
        """Compare everything except the rows with the footer."""
        footer = self.footer
        with self._damage_named("content"):
            if header_digest(self._source, footer.size, footer.tables) != footer.header:
                raise ValueError("its tables or structure do not match the footer")
