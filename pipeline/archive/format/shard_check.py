"""Checks of a closed shard against the manifest."""

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.footer import Footer, damaged
from pipeline.archive.format.jpeg import JpegRows
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.stored_type import value_type
from pipeline.common.places import Place, local

_STEP = 16 * 2**20
_FOREIGN = "it belongs to another archive or holds other rows"


def check_footer(path: Place, footer: Footer, manifest: Manifest, start: int, stop: int) -> None:
    """Check that a footer describes the rows start..stop of an archive."""
    identity = (footer.fingerprint, footer.stop - footer.start)
    if identity != (manifest.fingerprint_at(start), stop - start):
        raise damaged(path, _FOREIGN)
    for name, rows in manifest.row_datasets.items():
        table = footer.tables.get(name)
        if table is None:
            raise damaged(path, f"{name} is missing")
        shape = (stop - start, *rows.shape)
        if name == schema.JPEG_ROWS:
            shape = table.shape[:1]
            offsets = footer.tables.get(schema.JPEG_OFFSETS)
            if offsets is None or (offsets.shape, offsets.dtype) != ((stop - start + 1,), "int64"):
                raise damaged(path, f"{name} has no offsets")
        expected = (shape, rows.dtype, rows.codec)
        if (table.shape, table.dtype, table.codec) != expected or bool(table.chunk) != (
            table.codec != "none"
        ):
            raise damaged(path, f"{name} is {table.codec} {table.dtype}{table.shape}")
        if bool(table.digest) == rows.checked:
            raise damaged(path, f"{name} has no checksums")
        if rows.checked:
            sums = footer.tables.get(schema.checksum_path(name))
            if sums is None or (sums.shape, sums.dtype) != ((stop - start,), "uint64"):
                raise damaged(path, f"{name} has no checksums")


def check_finished(archive: Place, manifest: Manifest, number: int) -> ArchiveFile:
    """Return a finished shard: a local one checked whole, else only its footer."""
    path, (start, stop) = schema.shard_path(archive, number), manifest.shards[number]
    if local(path):
        return check_shard(path, manifest, start, stop)
    file = ArchiveFile(path)
    check_footer(path, file.footer, manifest, start, stop)
    return file


def check_shard(
    path: Place, manifest: Manifest, start: int, stop: int, *, rows: str = "all"
) -> ArchiveFile:
    """Check that a closed shard belongs to the manifest and is undamaged; return the opened file.

    Args:
        path: of the shard.
        manifest: of the archive.
        start, stop: rows that the shard must hold.
        rows: rows to read and compare: `all`; `last`, which finds a truncated file; or `none`.
    """
    file = ArchiveFile(path)
    check_footer(path, file.footer, manifest, start, stop)
    if file.footer.start != start:
        raise damaged(path, _FOREIGN)
    file.check_header()
    if file.columns()["id"] != list(manifest.samples[start:stop]):
        raise damaged(path, "the sample ids do not match the manifest")
    if rows != "none" and stop > start:
        first = stop - start - 1 if rows == "last" else 0
        for name in manifest.row_codecs:
            _read_through(file, name, range(first, stop - start), start)
    return file


def _read_through(file: ArchiveFile, name: str, rows: range, start: int) -> None:
    """Read rows and compare their checksums; JPEG files are not decoded."""
    table, reader = file.footer.tables[name], file.rows(name, start)
    step = max(1, _STEP // max(1, table.row_bytes))
    for block in (rows[i : i + step] for i in range(0, len(rows), step)):
        try:
            if isinstance(reader, JpegRows):
                for row in block:
                    reader.content(row)
            else:
                dtype = value_type(table.dtype)
                reader.read(block[0], np.empty((len(block), *table.shape[1:]), dtype))
        except (OSError, ValueError) as error:
            raise damaged(file.path, f"at row {start + block[0]} of {name}: {error}") from error
