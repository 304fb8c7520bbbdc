"""Pack: a complete archive as one self-contained HDF5 file, for a browser viewer or a colleague."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from pipeline.archive import layout, schema
from pipeline.archive.reader import Archive
from pipeline.durable import replacing
from pipeline.errors import ArchiveError, ConfigError


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
    try:
        with replacing(out) as temporary, h5py.File(temporary, "w") as packed:
            _fill(packed, archive)
    except (OSError, RuntimeError) as error:
        raise ArchiveError(f"{out}: packing failed: {error}") from error
    return out


def _fill(packed: h5py.File, archive: Archive) -> None:
    manifest = archive.manifest
    layout.write_root(packed, manifest, 0, len(archive))
    samples = archive.samples
    columns: dict[str, list[Any]] = {
        name: [getattr(sample, name) for sample in samples]
        for name in ("id", "label", "label_name", "path")
    }
    errors = [sample.error for sample in samples]
    layout.write_samples(packed, columns, archive.status, errors)
    image = f"{schema.INPUTS_GROUP}/{schema.IMAGE}"
    shape = (len(archive), *manifest.image_shape)
    axes = (schema.SAMPLE, *schema.IMAGE_AXES)
    inputs = packed[schema.INPUTS_GROUP]
    _copy(archive, image, layout.create_data(inputs, schema.IMAGE, shape, "uint8", axes))
    for layer in manifest.layers:
        group = layout.create_layer_group(packed, layer)
        where = schema.layer_group(layer.name)
        dataset = layout.create_data(
            group,
            schema.ACTIVATION,
            (len(archive), *layer.shape),
            layer.dtype,
            (schema.SAMPLE, *layer.axes),
        )
        layout.layer_attributes(dataset, layer)
        _copy(archive, f"{where}/{schema.ACTIVATION}", dataset)
        statistics = group[schema.STATISTICS_GROUP]
        for name in schema.SAMPLE_STATISTICS:
            rows = layout.create_data(
                statistics,
                name,
                (len(archive), layer.channels),
                "float32",
                (schema.SAMPLE, schema.CHANNEL),
            )
            _copy(archive, f"{where}/{schema.STATISTICS_GROUP}/{name}", rows)
        for name, values in archive.layers[layer.name].statistics.items():
            figure = layout.create_data(
                statistics, name, values.shape, values.dtype.str, (schema.CHANNEL,)
            )
            figure[...] = values
    layout.write_filters(packed, archive.filters)


def _copy(archive: Archive, name: str, target: h5py.Dataset) -> None:
    for start, stop in archive.manifest.shards:
        step = max(1, (16 * 2**20 * len(archive)) // max(1, target.nbytes))
        for row in range(start, stop, step):
            end = min(row + step, stop)
            target[row:end] = archive.read_rows(name, row, end)
