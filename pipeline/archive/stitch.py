"""Stitch: finished shards become a complete archive, with its index and COMPLETE.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.archive import layout, schema
from pipeline.archive.complete import Complete
from pipeline.archive.digest import check_digest, read_digest
from pipeline.archive.manifest import LayerEntry, Manifest
from pipeline.archive.safety import damage_named, open_safely
from pipeline.archive.shard_check import check_shard
from pipeline.archive.statistics import ChannelStatistics, merge
from pipeline.foundation.atomic_files import file_sha256, replacing, write_bytes
from pipeline.foundation.errors import ArchiveError, one_line


def missing_shards(archive: Path, manifest: Manifest) -> list[int]:
    """Return the numbers of the shards that are not there."""
    return [i for i in range(len(manifest.shards)) if not schema.shard_path(archive, i).is_file()]


def stitched(archive: Path) -> Complete | None:
    """Return what completed an archive if it describes the files that are there, else None.

    Shards are compared by their noted digests only: the caller has checked them.
    """
    try:
        complete = Complete.read(archive)
        for name, digest in complete.files.items():
            path = archive / name
            of_shard = path.parent == archive / schema.SHARDS
            if digest != (read_digest(path) if of_shard else file_sha256(path)):
                return None
    except (OSError, ValueError, IndexError, ArchiveError):
        return None
    return complete


def stitch(archive: Path, *, checked: Sequence[int] = ()) -> Complete:
    """Complete an archive whose shards are all finished; the caller holds its lock.

    Args:
        archive: the folder.
        checked: shards that this process has just written or checked; the others are read through.

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
    with damage_named(f"{archive}: cannot be completed"):
        table = _write_index(archive, manifest, checked)
    skipped = [
        {"index": i, "id": table["id"][i], "path": table["path"][i],
         "error": one_line(table["error"][i])}
        for i, status in enumerate(table["status"])
        if status == schema.STATUS_SKIPPED
    ]  # fmt: skip
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in skipped)
    write_bytes(archive / schema.ERRORS, lines.encode())
    files = [archive / schema.MANIFEST, *digests, archive / schema.INDEX, archive / schema.ERRORS]
    complete = Complete(
        fingerprint=manifest.fingerprint,
        samples=len(manifest.samples),
        skipped=len(skipped),
        shards=len(digests),
        bytes=sum(file.stat().st_size for file in files),
        files={
            file.relative_to(archive).as_posix(): digests.get(file) or file_sha256(file)
            for file in files
        },
        pixels_sha256=hashlib.sha256("".join(table["pixels_sha256"]).encode()).hexdigest()
        if any(table["pixels_sha256"])
        else "",
    )
    complete.write(archive)
    return complete


def _write_index(archive: Path, manifest: Manifest, checked: Sequence[int]) -> dict[str, list[Any]]:
    """Write archive.h5 and return the sample table."""
    table: dict[str, list[Any]] = {name: [] for name in (*layout.SAMPLE_COLUMNS, "status", "error")}
    rounding: dict[str, float] = {}
    figures: dict[str, list[ChannelStatistics]] = {layer.name: [] for layer in manifest.layers}
    filters: dict[str, Any] = {}
    with replacing(archive / schema.INDEX) as temporary, h5py.File(temporary, "w") as index:
        layout.write_tree(index, manifest, 0, len(manifest.samples), virtual=True)
        for number, (start, stop) in enumerate(manifest.shards):
            path = schema.shard_path(archive, number)
            with open_safely(path, own=number in checked) as shard:
                for name, values in table.items():
                    values += _column(shard, name, stop - start)
                for layer in manifest.layers:
                    figures[layer.name].append(read_figures(shard, layer))
                    stored = shard[schema.layer_group(layer.name)][schema.ACTIVATION]
                    if schema.ROUNDING in stored.attrs:
                        error = float(stored.attrs[schema.ROUNDING])
                        rounding[layer.name] = max(rounding.get(layer.name, 0.0), error)
                filters = filters or layout.read_filters(shard, manifest.image_shape[0])
        layout.write_samples(index, table, np.array(table["status"]), table["error"])
        for layer in manifest.layers:
            group = index[schema.layer_group(layer.name)]
            if layer.name in rounding:
                group[schema.ACTIVATION].attrs[schema.ROUNDING] = rounding[layer.name]
            merged = _figures_of(merge(figures[layer.name]))
            layout.write_figures(group[schema.STATISTICS_GROUP], merged)
        layout.write_filters(index, filters)
    return table


def _column(shard: h5py.File, name: str, rows: int) -> list[Any]:
    group = shard[schema.SAMPLES_GROUP]
    if name not in group:  # an earlier version did not keep it
        return [""] * rows
    column = group[name]
    return list(column.asstr()[()] if column.dtype.kind == "O" else column[()])


def read_figures(shard: h5py.File, layer: LayerEntry) -> ChannelStatistics:
    """Read a shard's per-channel figures."""
    group = shard[schema.layer_group(layer.name)][schema.STATISTICS_GROUP]
    return ChannelStatistics(
        **{field.name: group[field.name][()] for field in fields(ChannelStatistics)}
    )


def _figures_of(statistics: ChannelStatistics) -> dict[str, Any]:
    some = statistics.count > 0
    return {
        "count": statistics.count,
        "mean": statistics.mean,
        "std": statistics.std,
        "min": np.where(some, statistics.min, np.nan),
        "max": np.where(some, statistics.max, np.nan),
        "zero_fraction": statistics.zero_fraction,
        "nonfinite_count": statistics.nonfinite,
    }
