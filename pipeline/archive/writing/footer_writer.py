"""Writing of the texts and the footer after a finished HDF5 file."""

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from xxhash import xxh3_64_hexdigest

from pipeline.archive.format.file_bytes import Extent, FileBytes
from pipeline.archive.format.footer import Footer, Table, header_digest
from pipeline.archive.format.tree import type_name
from pipeline.common.atomic_files import write_at

_END = 40
"""Offset of the end-of-file address in an HDF5 superblock of version 0."""


def write_footer(
    path: Path,
    file: h5py.File,
    *,
    codecs: Mapping[str, str],
    texts: Mapping[str, Any],
    filters: Collection[str],
    rounding: Mapping[str, float],
) -> None:
    """Close a file with finished HDF5 content and append texts and footer.

    The superblock's end-of-file address is moved behind both: HDF5 truncates a file to it when it
    is opened for writing, as R's hdf5r does by default.

    Args:
        path: of the file.
        file: open for writing.
        codecs: dataset of rows → codec.
        texts: name → value to store as JSON.
        filters: layers whose weights are in the file, in execution order.
        rounding: layer → largest relative error of the stored type.
    """
    file.flush()
    tables: dict[str, Table] = {}

    def describe(name: bytes, info: h5py.h5o.ObjInfo) -> None:
        if info.type != h5py.h5o.TYPE_DATASET:
            return
        item = h5py.Dataset(h5py.h5d.open(file.id, name))
        path = f"/{name.decode()}"
        unlisted = h5py.h5ds.is_scale(item.id) or item.dtype.kind == "O" or item.is_virtual
        if path in codecs or not unlisted:
            tables[path] = _table(item, codecs.get(path))

    h5py.h5o.visit(file.id, describe, info=True)
    attributes = {name: file.attrs[name] for name in ("fingerprint", "start", "stop")}
    file.close()
    size = hdf5_size = path.stat().st_size
    content = bytearray()
    text_locations: dict[str, tuple[int, int, str]] = {}
    for name, value in texts.items():
        text = json.dumps(value, separators=(",", ":")).encode()
        text_locations[name] = (size + len(content), len(text), xxh3_64_hexdigest(text))
        content += text
    with path.open("r+b") as raw:
        write_at(raw.fileno(), memoryview(content), size)
        size += len(content)
        footer = Footer(
            fingerprint=str(attributes["fingerprint"]),
            start=int(attributes["start"]),
            stop=int(attributes["stop"]),
            tables=tables,
            texts=text_locations,
            filters=list(filters),
            rounding=rounding,
            size=size,
            header="0" * 32,  # as long as the digest
        )
        end = size + len(footer.to_bytes())
        assert os.pread(raw.fileno(), 8, _END) == hdf5_size.to_bytes(8, "little")
        write_at(raw.fileno(), memoryview(end.to_bytes(8, "little")), _END)
        footer = replace(footer, header=header_digest(FileBytes(path), size, tables))
        write_at(raw.fileno(), memoryview(footer.to_bytes()), size)


def _table(dataset: h5py.Dataset, codec: str | None) -> Table:
    """Return the table of rows with a codec, or of values with a digest."""
    table = Table(
        shape=dataset.shape,
        dtype=type_name(dataset),
        extents=tuple(_chunks(dataset)) if dataset.chunks else (_extent(dataset),),
        chunk=dataset.chunks or (),
        codec=codec or "none",
    )
    if codec is None:
        table = replace(table, digest=table.digest_of(np.ascontiguousarray(dataset[()])))
    return table


def _extent(dataset: h5py.Dataset) -> Extent:
    if not dataset.size:
        return (0, 0)
    offset = dataset.id.get_offset()
    assert offset is not None, f"{dataset.name} has no offset in the file"
    return int(offset), int(dataset.id.get_storage_size())


def _chunks(dataset: h5py.Dataset) -> list[Extent]:
    """Return the extents of a dataset's chunks, in C order of their positions."""
    extents: dict[tuple[int, ...], Extent] = {}

    def note(chunk: Any) -> None:
        assert not chunk.filter_mask, f"{dataset.name}: a chunk is not compressed"
        extents[chunk.chunk_offset] = (int(chunk.byte_offset), int(chunk.size))

    dataset.id.chunk_iter(note)
    grid = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    assert len(extents) == math.prod(grid), f"{dataset.name}: some chunks were not written"
    return [extents[offset] for offset in sorted(extents)]
