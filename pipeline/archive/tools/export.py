"""Export: layers of an archive as arrays for other tools, with ids and labels in the same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.archive.tools.export_files import RDM, RDM_AXES, About, Target, write_table, writer_of
from pipeline.archive.tools.provenance import provenance
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import replacing, write_json
from pipeline.common.errors import ConfigError
from pipeline.common.progress import Progress

Derived = Callable[[str, Sequence[int]], Array]


class Pool(StrEnum):
    """What becomes of positions: they stay, or one number per channel."""

    NONE = "none"
    MEAN = "mean"
    MAX = "max"


def export(
    archive: Archive,
    out: Path,
    to: Target,
    *,
    rows: Sequence[int] | None = None,
    pool: Pool = Pool.NONE,
    flatten: bool = False,
    derived: Derived | None = None,
    values: str = "activations",
) -> list[Path]:
    """Write every layer of an archive, `(sample, …)`, with the table of its samples and provenance.

    Row i of every file is row i of `samples.csv`: the archive's order, without skipped samples.

    Args:
        archive: open; `Archive.with_layers` chooses layers.
        out: a new folder.
        to: the kind of file.
        rows: of these samples only.
        pool: mean or maximum over the positions of each channel, prefix tokens left out.
        flatten: everything after the sample axis as one; CSV and Parquet always are.
        derived: layer and rows → an array to write instead of the activations.
        values: what the arrays hold, for provenance.json; `RDM` for `(sample, sample)`.

    Returns:
        The files, `samples.csv` and `provenance.json` first.

    Raises:
        ConfigError: when `out` is there already, no sample is left, or a package is not installed.
        ArchiveError: when a shard is damaged, or writing fails.
        DiskFullError: when the disk is full.
    """
    wanted = range(len(archive)) if rows is None else rows
    samples = [archive.samples[row] for row in wanted if not archive.samples[row].error]
    if not samples:
        raise ConfigError("export: no sample is left; all that are chosen were skipped")
    if out.exists():
        raise ConfigError(f"{out}: exists; name a new folder")
    writer = writer_of(to)
    out.mkdir(parents=True)
    files = [out / "samples.csv", out / "provenance.json"]
    with replacing(files[0]) as temporary:
        write_table(temporary, samples)
    tabular = flatten or to in (Target.CSV, Target.PARQUET)
    about = provenance(archive)
    about["export"] = {
        "values": values, "pool": str(pool), "flatten": tabular, "rows": len(samples),
    }  # fmt: skip
    write_json(files[1], about)
    shown = {
        layer.name: RDM_AXES
        if values == RDM
        else _axes(layer, pool, flat=tabular, derived=derived is not None)
        for layer in archive.layers.values()
    }
    with Progress("export", len(samples) * len(archive.layers), unit="activations") as progress:
        arrays = {
            layer.name: _read(layer, samples, pool, tabular, progress, derived)
            for layer in archive.layers.values()
        }
        return files + writer(out, arrays, samples, About(about, shown))


def _axes(layer: StoredLayer, pool: Pool, *, flat: bool, derived: bool) -> tuple[str, ...]:
    """Return the names of an exported array's axes, as many as it may have."""
    axes = layer.entry.axes
    if flat:
        return (schema.SAMPLE, "feature")
    if derived:
        return (schema.SAMPLE, "height", "width", "component")
    if pool is not Pool.NONE:
        return (schema.SAMPLE, axes[layer.entry.channel_axis - 1])
    return (schema.SAMPLE, *axes)


def _read(
    layer: StoredLayer, samples: Sequence[StoredSample], pool: Pool, flat: bool, progress: Progress,
    derived: Derived | None,
) -> Callable[[], Array]:  # fmt: skip
    """Return what reads a layer: when it is called, so that one layer at a time is in memory."""

    def read() -> Array:
        found: Array | None = None
        if derived is not None:
            found = derived(layer.name, [sample.index for sample in samples])
            progress.advance(len(samples))
            return found.reshape(len(found), -1) if flat else found
        for place, sample in enumerate(samples):
            row = _pooled(layer, layer[sample.index], pool)
            row = row.reshape(-1) if flat else row
            if found is None:
                found = np.empty((len(samples), *row.shape), row.dtype)
            found[place] = row
            progress.advance(1)
        assert found is not None
        return found

    return read


def _pooled(layer: StoredLayer, row: Array, pool: Pool) -> Array:
    axes = layer.entry.axes
    positions = tuple(i for i in range(len(axes)) if i != layer.entry.channel_axis - 1)
    if pool is Pool.NONE or not positions:
        return row
    if layer.entry.prefix_tokens:
        chosen = [slice(None)] * row.ndim
        chosen[axes.index("token")] = slice(layer.entry.prefix_tokens, None)
        row = row[tuple(chosen)]
    wide = row.astype(np.float32)
    pooled: Array = wide.mean(positions) if pool is Pool.MEAN else wide.max(positions)
    return pooled
