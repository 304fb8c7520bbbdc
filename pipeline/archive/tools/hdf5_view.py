"""Subprocess of `hdf5_check`: compares HDF5's view of files with their footers.

It reads lines of JSON, a path and the allowed CPU seconds, and writes one difference a line, or an
empty string.
"""

import itertools
import json
import math
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from xxhash import xxh3_64_hexdigest

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.codec import dataset_options
from pipeline.archive.format.footer import Table
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.tree import type_name
from pipeline.common.arrays import Array
from pipeline.common.errors import one_line

_MEMORY = 8 * 2**30
_SHARD_NAME = re.compile(r"shards/\d{5,}\.h5")
_OBJECTS = 1000
_OBJECTS_PER_TABLE = 10  # with scales, links and groups: two to three
_DEEPEST = 8  # groups of an archive are four levels deep


def compare(path: Path) -> str:
    """Return how HDF5's view of a file differs from its footer; empty if both agree."""
    try:
        file = ArchiveFile(path)
        with h5py.File(path, "r") as hdf5:
            max_objects = _OBJECTS + _OBJECTS_PER_TABLE * len(file.footer.tables)
            return _odd_link(hdf5, max_objects) or _compare(file, hdf5)
    except BaseException as error:  # noqa: BLE001 - HDF5's bindings raise anything on damage
        return f"{type(error).__name__}: {one_line(error, limit=200)}"


def _odd_link(hdf5: h5py.File, max_objects: int) -> str:
    """Return the first forbidden link, which could lead outside the file; empty without one."""
    numbers = itertools.count(1)

    def check(name: bytes, info: Any) -> str | None:
        if info.type != h5py.h5l.TYPE_HARD:
            kind = "soft" if info.type == h5py.h5l.TYPE_SOFT else "external"
            return f"/{name.decode()} is {'a' if kind == 'soft' else 'an'} {kind} link"
        if name.count(b"/") >= _DEEPEST or next(numbers) > max_objects:
            return f"more than {max_objects} objects, or groups deeper than {_DEEPEST}"
        return None

    return hdf5.id.links.visit(check, info=True) or ""


def _compare(file: ArchiveFile, hdf5: h5py.File) -> str:
    footer = file.footer
    attributes = [str(hdf5.attrs["fingerprint"]), int(hdf5.attrs["start"]), int(hdf5.attrs["stop"])]
    if attributes != [footer.fingerprint, footer.start, footer.stop]:
        return f"its attributes are {attributes}"
    for name, table in footer.tables.items():
        if fault := _compare_table(hdf5[name], table):
            return f"{name}: {fault}"
    for name in schema.SAMPLE_COLUMNS:
        column = hdf5[schema.SAMPLES_GROUP][name]
        values = column[()] if name in schema.NUMBER_COLUMNS else column.asstr()[()]
        if values.tolist() != file.text(name):
            return f"/{schema.SAMPLES_GROUP}/{name} holds other values"
    return _compare_virtual(file, hdf5) if file.path.name == schema.INDEX else ""


def _compare_table(dataset: h5py.Dataset, table: Table) -> str:
    if (dataset.shape, type_name(dataset)) != (table.shape, table.dtype) or dataset.external:
        return f"is {dataset.dtype}{dataset.shape}"
    if (dataset.chunks or ()) != table.chunk:
        return f"has chunks {dataset.chunks}"
    if table.chunk:
        extents: list[tuple[int, int]] = []
        dataset.id.chunk_iter(lambda chunk: extents.append((chunk.byte_offset, chunk.size)))
    else:
        size = dataset.id.get_storage_size()
        extents = [(dataset.id.get_offset() or 0, size)] if size else [(0, 0)]
    if sorted(extents) != sorted(table.extents):
        return "is at another offset"
    if table.codec != "none":
        dataset_options(table.codec)  # registers the filter
    if table.digest:
        matches = table.digest_of(np.ascontiguousarray(dataset[()])) == table.digest
        return "" if matches else "holds other values"
    sums = dataset.parent[schema.CHECKSUM]
    jpeg = dataset.name == schema.JPEG_ROWS
    offsets = dataset.parent[schema.OFFSET] if jpeg else range(len(sums) + 1)
    for row in {0, len(sums) - 1} if len(sums) else ():
        values = _bits(dataset, int(offsets[row]), int(offsets[row + 1]), table)
        if int(xxh3_64_hexdigest(values.data), 16) != int(sums[row]):
            return f"holds other values in row {row}"
    return ""


def _bits(dataset: h5py.Dataset, start: int, stop: int, table: Table) -> Array:
    """Return rows as HDF5 reads them, without conversion, which would change bfloat16 NaNs."""
    rows = np.empty((stop - start, *dataset.shape[1:]), table.bits_type)
    space = dataset.id.get_space()
    space.select_hyperslab((start, *[0] * (rows.ndim - 1)), rows.shape)
    dataset.id.read(h5py.h5s.create_simple(rows.shape), space, rows, dataset.id.get_type())
    return rows


def _compare_virtual(file: ArchiveFile, hdf5: h5py.File) -> str:
    """Compare the virtual datasets of archive.h5 with the manifest's shards."""
    manifest = Manifest.read(file.path.parent)
    for name, rows in manifest.row_datasets.items():
        dataset = hdf5[name]
        shape = () if name == schema.JPEG_ROWS else rows.shape
        expected_type = (shape, rows.dtype)
        if not dataset.is_virtual or (dataset.shape[1:], type_name(dataset)) != expected_type:
            return f"{name} is {dataset.dtype}{dataset.shape}"
        ranges = manifest.shards
        if name == schema.JPEG_ROWS:
            offsets = file.table(schema.JPEG_OFFSETS)
            ranges = [(int(offsets[start]), int(offsets[stop])) for start, stop in ranges]
        sources = [
            (source.file_name, source.dset_name, first[0], last[0])
            for source in dataset.virtual_sources()
            for first, last in [source.vspace.get_select_bounds()]
        ]
        escaped = name.replace("%", "%%")
        expected = [
            (f"{schema.SHARDS}/{schema.shard_path(Path(), number).name}", escaped, start, stop - 1)
            for number, (start, stop) in enumerate(ranges)
        ]
        if sorted(sources) != sorted(expected):
            foreign = [source[0] for source in sources if not _SHARD_NAME.fullmatch(source[0])]
            return f"{name} takes its data from {foreign[0] if foreign else 'other rows'!r}"
    return ""


def _main() -> None:
    for line in sys.stdin:
        path, seconds = json.loads(line)
        limit = math.ceil(time.process_time()) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        sys.stdout.write(f"{json.dumps(compare(Path(path)))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    _main()
