"""Packing of a complete archive into one self-contained HDF5 file, for viewers and sharing."""

from contextlib import closing
from pathlib import Path
from typing import Any

import h5py

from pipeline.archive.format import schema, tree
from pipeline.archive.format.manifest import JPEG
from pipeline.archive.format.stored_type import encode
from pipeline.archive.reading.archive import Archive
from pipeline.archive.writing.footer_writer import write_footer
from pipeline.archive.writing.jpeg_writer import JpegWriter
from pipeline.archive.writing.row_writer import RowWriter
from pipeline.common.atomic_files import replacing
from pipeline.common.errors import ConfigError


def pack(archive: Archive, out: Path) -> Path:
    """Write an archive to one HDF5 file, with the data of its virtual datasets.

    Raises:
        ConfigError: when `out` exists or its folder does not.
        ArchiveError: when a shard is damaged.
        DiskFullError: when the disk is full.
    """
    if out.exists():
        raise ConfigError(f"{out}: already exists; choose a new file")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder; create it first")
    with replacing(out) as temporary, h5py.File(temporary, "w") as packed:
        _fill(temporary, packed, archive)
        columns = _columns(archive)
        tree.write_samples(packed, columns)
        rounding = {
            name: layer.rounding
            for name, layer in archive.layers.items()
            if layer.rounding is not None
        }
        write_footer(
            temporary, packed,
            codecs=archive.manifest.row_codecs,
            texts={**columns, "manifest": archive.manifest.to_json(samples=False)},
            filters=archive.filters,
            rounding=rounding,
        )  # fmt: skip
    return out


def _columns(archive: Archive) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        name: [getattr(sample, name) for sample in archive.samples]
        for name in schema.SAMPLE_COLUMNS
        if name != "status"
    }
    return {**columns, "status": archive.status.tolist()}


def _fill(path: Path, packed: h5py.File, archive: Archive) -> None:
    manifest = archive.manifest
    tree.write_tree(packed, manifest, 0, len(archive), packed=True)
    writer = RowWriter(path, packed, manifest.row_codecs)
    try:
        for name in writer.checksums:
            for start, stop in manifest.blocks(packed[name].nbytes // len(archive)):
                rows = archive.read_rows(name, start, stop)
                writer.write(start, {name: encode(rows, manifest.row_datasets[name].dtype)})
        writer.finish()
    finally:
        writer.close()
    if manifest.inputs == JPEG:
        with closing(JpegWriter(path.parent)) as jpegs:
            jpegs.write(map(archive.jpeg, range(len(archive))))
            jpegs.finish(packed)
    for layer in manifest.layers:
        stored, group = archive.layers[layer.name], packed[schema.layer_group(layer.name)]
        statistics = group[schema.STATISTICS_GROUP]
        for name in schema.SAMPLE_STATISTICS if not layer.vector else ():
            for start, stop in manifest.blocks(4 * layer.channels):
                statistics[name][start:stop] = stored.per_sample(name, start, stop)
        if layer.drawn:
            group[schema.POSITION][...] = stored.position
        tree.write_figures(packed, layer.name, stored.statistics, stored.rounding)
    tree.write_filters(packed, archive.filters)
