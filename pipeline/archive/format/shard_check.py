"""Checks of a closed shard against the manifest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.codec import Codec
from pipeline.archive.format.footer import Footer, damaged
from pipeline.archive.format.jpeg import JpegRows
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.stored_type import value_type
from pipeline.common.errors import ArchiveError

_STEP = 16 * 2**20


def row_codecs(manifest: Manifest) -> dict[str, str]:
    """Return dataset of rows → codec, of a shard or a packed file."""
    names = {name: str(Codec.NONE) for name in filter(None, [manifest.input_rows])}
    return names | {schema.activation_rows(layer.name): layer.codec for layer in manifest.layers}


def row_shapes(manifest: Manifest) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return dataset with a row per sample → shape of a row, of JPEG files decoded, and type."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    if manifest.input_rows:
        shapes[manifest.input_rows] = (tuple(manifest.image_shape), "uint8")
    for layer in manifest.layers:
        shapes[schema.activation_rows(layer.name)] = (layer.shape, layer.dtype)
        if layer.drawn:
            drawn = (layer.shape[layer.axes.index("token")],)
            shapes[schema.position_rows(layer.name)] = (drawn, "int64")
        for figure in schema.SAMPLE_STATISTICS if not layer.vector else ():
            shapes[schema.statistic(layer.name, figure)] = ((layer.channels,), "float32")
    return shapes


def check_footer(path: Path, footer: Footer, manifest: Manifest, start: int, stop: int) -> None:
    """Check that a footer is that of the rows start..stop of an archive.

    Raises:
        ArchiveError: naming the file.
    """
    rows = (footer.fingerprint, footer.stop - footer.start)
    if rows != (manifest.fingerprint_at(start), stop - start):
        raise ArchiveError(f"{path}: belongs to another archive or other rows")
    codecs = row_codecs(manifest)
    for name, (shape, dtype) in row_shapes(manifest).items():
        table = footer.tables.get(name)
        if table is None:
            raise damaged(path, f"it lacks {name}")
        whole = (stop - start, *shape)
        if name == schema.JPEG_ROWS:
            whole = table.shape[:1]
            offsets = footer.tables.get(schema.JPEG_OFFSETS)
            if offsets is None or (offsets.shape, offsets.dtype) != ((stop - start + 1,), "int64"):
                raise damaged(path, f"{name} has no offsets")
        expected = (whole, dtype, codecs.get(name, "none"))
        if (table.shape, table.dtype, table.codec) != expected or bool(table.chunk) != (
            table.codec != Codec.NONE
        ):
            raise damaged(path, f"{name} is {table.codec} {table.dtype}{table.shape}")
        if bool(table.digest) == (name in codecs):
            raise damaged(path, f"{name} has no checksums")
        if name in codecs:
            sums = footer.tables.get(schema.checksum_path(name))
            if sums is None or (sums.shape, sums.dtype) != ((stop - start,), "uint64"):
                raise damaged(path, f"{name} has no checksums")


def check_shard(
    path: Path, manifest: Manifest, start: int, stop: int, *, rows: str = "all"
) -> ArchiveFile:
    """Check that a closed shard belongs to the manifest and holds what was written.

    Args:
        path: of the shard.
        manifest: of the archive.
        start, stop: the rows that it must hold.
        rows: which rows are read and compared: `all`; `last`, where a file that lost something has
            lost it; or `none`.

    Returns:
        The opened file.

    Raises:
        ArchiveError: naming the file and the first fault.
    """
    file = ArchiveFile(path)
    check_footer(path, file.footer, manifest, start, stop)
    if file.footer.start != start:
        raise ArchiveError(f"{path}: belongs to another archive or other rows")
    file.check_header()
    if file.columns()["id"] != list(manifest.samples[start:stop]):
        raise ArchiveError(f"{path}: its sample ids are not the manifest's")
    if rows != "none" and stop > start:
        first = stop - start - 1 if rows == "last" else 0
        for name in row_codecs(manifest):
            _read_through(file, name, range(first, stop - start), start)
    return file


def _read_through(file: ArchiveFile, name: str, rows: range, start: int) -> None:
    """Read rows; their checksums must hold. JPEG files are not decoded."""
    table, reader = file.footer.tables[name], file.rows(name, start)
    step = max(1, _STEP // max(1, table.row_bytes))
    for block in _blocks(rows, step):
        try:
            if isinstance(reader, JpegRows):
                for row in block:
                    reader.content(row)
            else:
                kind = value_type(table.dtype)
                reader.read(block[0], np.empty((len(block), *table.shape[1:]), kind))
        except (OSError, ValueError) as error:
            raise damaged(file.path, f"at row {start + block[0]} of {name}: {error}") from error


def _blocks(rows: range, step: int) -> Iterable[range]:
    return (rows[i : i + step] for i in range(0, len(rows), step))
