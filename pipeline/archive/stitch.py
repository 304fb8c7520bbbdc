"""Stitch: finished shards become a complete archive.

The virtual index, the skipped samples, COMPLETE.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.archive import layout, schema
from pipeline.archive.digest import check_digest, read_digest
from pipeline.archive.manifest import LayerEntry, Manifest
from pipeline.archive.shard_check import check_shard
from pipeline.durable import file_sha256, replacing, write_bytes, write_json
from pipeline.errors import ArchiveError
from pipeline.names import one_line
from pipeline.statistics import ChannelStatistics, merge


def missing_shards(archive: Path, manifest: Manifest) -> list[int]:
    """Return the numbers of the shards that are not there."""
    return [i for i in range(len(manifest.shards)) if not schema.shard_path(archive, i).is_file()]


def stitched(archive: Path) -> dict[str, Any] | None:
    """Return the content of COMPLETE.json if it describes the files that are there, else None.

    Shards are compared by their noted digests only: the caller has checked them.
    """
    try:
        content: dict[str, Any] = json.loads((archive / schema.COMPLETE).read_text("utf-8"))
        for name, digest in content["files"].items():
            path = archive / name
            of_shard = path.parent == archive / schema.SHARDS
            if digest != (read_digest(path) if of_shard else file_sha256(path)):
                return None
    except (OSError, ValueError, KeyError, AttributeError, ArchiveError):
        return None
    return content


def stitch(archive: Path, *, checked: Sequence[int] = ()) -> dict[str, Any]:
    """Complete an archive whose shards are all finished; the caller holds its lock.

    Args:
        archive: the folder.
        checked: shards that this process has just written or checked; the others are read through.

    Returns:
        The content of COMPLETE.json.

    Raises:
        ArchiveError: when a shard is missing or damaged.
    """
    manifest = Manifest.read(archive)
    missing = missing_shards(archive, manifest)
    if missing:
        raise ArchiveError(
            f"{archive}: {len(missing)} of {len(manifest.shards)} shards are missing, first shard "
            f"{missing[0]:05d} (rows {manifest.shards[missing[0]][0]} on); run the extraction "
            "again to make them"
        )
    digests: dict[Path, str] = {}
    for number, (start, stop) in enumerate(manifest.shards):
        shard = schema.shard_path(archive, number)
        if number in checked:
            digests[shard] = read_digest(shard)
        else:
            digests[shard] = check_digest(shard)
            check_shard(shard, manifest, start, stop)
    skipped = _write_index(archive, manifest)
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in skipped)
    write_bytes(archive / schema.ERRORS, lines.encode())
    files = [archive / schema.MANIFEST, *digests, archive / schema.INDEX, archive / schema.ERRORS]
    content = {
        "format": schema.FORMAT,
        "format_version": schema.FORMAT_VERSION,
        "fingerprint": manifest.fingerprint,
        "samples": len(manifest.samples),
        "skipped": len(skipped),
        "shards": len(digests),
        "bytes": sum(file.stat().st_size for file in files),
        "files": {
            file.relative_to(archive).as_posix(): digests.get(file) or file_sha256(file)
            for file in files
        },
    }
    write_json(archive / schema.COMPLETE, content)
    return content


def _write_index(archive: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """Write archive.h5 and return the skipped samples."""
    path = archive / schema.INDEX
    table: dict[str, list[Any]] = {
        name: [] for name in ("id", "label", "label_name", "path", "status", "error")
    }
    rounding: dict[str, float] = {}
    figures: dict[str, list[ChannelStatistics]] = {layer.name: [] for layer in manifest.layers}
    with replacing(path) as temporary, h5py.File(temporary, "w") as index:
        layout.write_root(index, manifest, 0, len(manifest.samples))
        filters = {}
        for number in range(len(manifest.shards)):
            with h5py.File(schema.shard_path(archive, number), "r") as shard:
                for name, values in table.items():
                    column = shard[schema.SAMPLES_GROUP][name]
                    values += list(column.asstr()[()] if column.dtype.kind == "O" else column[()])
                for layer in manifest.layers:
                    figures[layer.name].append(read_figures(shard, layer))
                    stored = shard[schema.layer_group(layer.name)][schema.ACTIVATION]
                    if schema.ROUNDING in stored.attrs:
                        error = float(stored.attrs[schema.ROUNDING])
                        rounding[layer.name] = max(rounding.get(layer.name, 0.0), error)
                if number == 0:
                    filters = {
                        d.attrs["layer"]: d[()] for d in _weights(shard[schema.FILTERS_GROUP])
                    }
        layout.write_samples(index, table, np.array(table["status"]), table["error"])
        _virtual(
            index[schema.INPUTS_GROUP],
            schema.IMAGE,
            manifest,
            manifest.image_shape,
            "uint8",
            schema.IMAGE_AXES,
        )
        for layer in manifest.layers:
            group = layout.create_layer_group(index, layer)
            dataset = _virtual(
                group, schema.ACTIVATION, manifest, layer.shape, layer.dtype, layer.axes
            )
            layout.layer_attributes(dataset, layer)
            if layer.name in rounding:
                dataset.attrs[schema.ROUNDING] = rounding[layer.name]
            _write_statistics(
                group[schema.STATISTICS_GROUP], manifest, layer, merge(figures[layer.name])
            )
        layout.write_filters(index, filters)
    return [
        {
            "index": i,
            "id": table["id"][i],
            "path": table["path"][i],
            "error": one_line(table["error"][i]),
        }
        for i, status in enumerate(table["status"])
        if status == schema.STATUS_SKIPPED
    ]


def _weights(group: h5py.Group) -> list[h5py.Dataset]:
    return [dataset for dataset in group.values() if "layer" in dataset.attrs]


def _virtual(
    group: h5py.Group,
    name: str,
    manifest: Manifest,
    shape: tuple[int, ...],
    dtype: str,
    axes: tuple[str, ...],
) -> h5py.Dataset:
    """Create a dataset whose rows are those of the shards' datasets at the same place."""
    virtual = h5py.VirtualLayout(shape=(len(manifest.samples), *shape), dtype=dtype)
    for number, (start, stop) in enumerate(manifest.shards):
        relative = f"{schema.SHARDS}/{schema.shard_path(Path(), number).name}"
        source = h5py.VirtualSource(
            relative, f"{group.name}/{name}", shape=(stop - start, *shape), dtype=dtype
        )
        virtual[start:stop] = source
    return layout.create_data(
        group, name, virtual.shape, dtype, (schema.SAMPLE, *axes), layout=virtual
    )


def read_figures(shard: h5py.File, layer: LayerEntry) -> ChannelStatistics:
    """Read a shard's per-channel figures."""
    group = shard[schema.layer_group(layer.name)][schema.STATISTICS_GROUP]
    return ChannelStatistics(
        **{field.name: group[field.name][()] for field in fields(ChannelStatistics)}
    )


def _write_statistics(
    group: h5py.Group, manifest: Manifest, layer: LayerEntry, statistics: ChannelStatistics
) -> None:
    some = statistics.count > 0
    values = {
        "count": statistics.count,
        "mean": statistics.mean,
        "std": statistics.std,
        "min": np.where(some, statistics.min, np.nan),
        "max": np.where(some, statistics.max, np.nan),
        "zero_fraction": statistics.zero_fraction,
        "nonfinite_count": statistics.nonfinite,
    }
    for name, array in values.items():
        dataset = layout.create_data(group, name, array.shape, array.dtype.str, (schema.CHANNEL,))
        dataset[...] = array
    for name in schema.SAMPLE_STATISTICS:
        _virtual(group, name, manifest, (layer.channels,), "float32", (schema.CHANNEL,))
