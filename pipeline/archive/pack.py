"""Pack: a complete archive as one self-contained HDF5 file, for a browser viewer or a colleague."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from pipeline.archive import layout, schema
from pipeline.archive.codec import Codec, CompressedWriter
from pipeline.archive.reader import Archive
from pipeline.errors import ConfigError
from pipeline.foundation.atomic_files import replacing


def pack(archive: Archive, out: Path) -> Path:
    """Copy every dataset of archive.h5, its virtual ones with their data, into `out`.

    Raises:
        ConfigError: when `out` exists or its folder does not.
        ArchiveError: when a shard is damaged.
        DiskFullError: when the disk is full.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists; name a new file")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder")
    with replacing(out) as temporary, h5py.File(temporary, "w") as packed:
        _fill(packed, archive)
    return out


def _fill(packed: h5py.File, archive: Archive) -> None:
    manifest = archive.manifest
    layout.write_tree(packed, manifest, 0, len(archive))
    samples = archive.samples
    columns: dict[str, list[Any]] = {
        name: [getattr(sample, name) for sample in samples] for name in layout.SAMPLE_COLUMNS
    }
    layout.write_samples(packed, columns, archive.status, [sample.error for sample in samples])
    writer = CompressedWriter()
    try:
        _copy(archive, f"{schema.INPUTS_GROUP}/{schema.IMAGE}", packed, writer)
        for layer in manifest.layers:
            where = schema.layer_group(layer.name)
            _copy(archive, f"{where}/{schema.ACTIVATION}", packed, writer, layer.codec)
            for name in schema.SAMPLE_STATISTICS:
                _copy(archive, f"{where}/{schema.STATISTICS_GROUP}/{name}", packed, writer)
            stored = archive.layers[layer.name]
            layout.write_figures(packed[f"{where}/{schema.STATISTICS_GROUP}"], stored.statistics)
            if stored.rounding is not None:
                packed[f"{where}/{schema.ACTIVATION}"].attrs[schema.ROUNDING] = stored.rounding
    finally:
        writer.close()
    layout.write_filters(packed, archive.filters)


def _copy(
    archive: Archive,
    name: str,
    packed: h5py.File,
    writer: CompressedWriter,
    codec: str = Codec.NONE,
) -> None:
    target = packed[name]
    for start, stop in archive.manifest.shards:
        step = max(1, (16 * 2**20 * len(archive)) // max(1, target.nbytes))
        for row in range(start, stop, step):
            end = min(row + step, stop)
            writer.write(target, row, archive.read_rows(name, row, end), codec)
