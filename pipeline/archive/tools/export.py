"""Export of layers as arrays for other tools, with ids and labels in the same order."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive, opened
from pipeline.archive.reading.indexing import row_numbers
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.archive.tools.export_files import RDM, RDM_AXES, About, Target, write_table, writer_of
from pipeline.archive.tools.provenance import provenance
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import new_folder, write_json
from pipeline.common.errors import ConfigError, member
from pipeline.common.places import Place
from pipeline.common.progress import Progress

Derived = Callable[[str, Sequence[int]], Array]
Pool = Literal["none", "mean", "max"]


def export(
    archive: Archive | str | Place,
    out: str | Path,
    to: str,
    *,
    rows: Sequence[int] | None = None,
    pool: str = "none",
    flatten: bool = False,
    derived: Derived | None = None,
    values: str = "activations",
) -> list[Path]:
    """Write every layer of an archive, `(sample, …)`, with its sample table and provenance.

    Row i of every file is row i of `samples.csv`: the archive's order, without skipped samples.

    Args:
        archive: open, or its path; select layers with `Archive.with_layers`.
        out: a new folder; it appears when it is whole.
        to: file format.
        rows: rows of the samples to export, or a mask of all rows; None exports all.
        pool: `mean` or `max` over the positions of each channel, without prefix tokens; `none`
            keeps the positions.
        flatten: whether to flatten all axes after `sample`; always true for CSV and Parquet.
        derived: layer and rows → an array to write instead of the activations.
        values: content of the arrays, for provenance.json; `RDM` for `(sample, sample)`.

    Returns:
        The files, `samples.csv` and `provenance.json` first.

    Raises:
        ConfigError: when `out` exists, no sample remains, a row does not exist, a name is unknown
            or a package missing.
        ArchiveError: when a shard is damaged or writing fails.
        DiskFullError: when the disk is full.
    """
    out, to = Path(out), member(Target, to, "export: unknown format")
    pool = member(Pool, pool, "export: unknown pool")
    with opened(archive) as archive:
        selected_rows = row_numbers(... if rows is None else rows, len(archive))
        samples = [archive.samples[row] for row in selected_rows if not archive.samples[row].error]
        if not samples:
            raise ConfigError("export: no samples to export; all selected samples were skipped")
        if out.exists():
            raise ConfigError(f"{out}: already exists; choose a new folder")
        writer = writer_of(to)
        tabular = flatten or to in ("csv", "parquet")
        about = provenance(archive)
        about["export"] = {
            "values": values, "pool": str(pool), "flatten": tabular, "rows": len(samples),
        }  # fmt: skip
        axes = {
            layer.name: RDM_AXES
            if values == RDM
            else _axes(layer, pool, flat=tabular, derived=derived is not None)
            for layer in archive.layers.values()
        }
        count = len(samples) * len(archive.layers)
        with new_folder(out) as folder, Progress("export", count, unit="activations") as progress:
            arrays = {
                layer.name: _read(layer, samples, pool, tabular, progress, derived)
                for layer in archive.layers.values()
            }
            files = [folder / "samples.csv", folder / "provenance.json"]
            write_table(files[0], samples)
            write_json(files[1], about)
            files += writer(folder, arrays, samples, About(about, axes))
    return [out / file.name for file in files]


def _axes(layer: StoredLayer, pool: str, *, flat: bool, derived: bool) -> tuple[str, ...]:
    """Return the axis names of an exported array, up to its maximum number of axes."""
    axes = layer.entry.axes
    if flat:
        return (schema.SAMPLE, "feature")
    if derived:
        return (schema.SAMPLE, "height", "width", "component")
    if pool != "none":
        return (schema.SAMPLE, axes[layer.entry.channel_axis - 1])
    return (schema.SAMPLE, *axes)


def _read(
    layer: StoredLayer, samples: Sequence[StoredSample], pool: str, flat: bool, progress: Progress,
    derived: Derived | None,
) -> Callable[[], Array]:  # fmt: skip
    """Return a function that reads a layer, so that only one layer at a time is in memory."""

    def read() -> Array:
        values: Array | None = None
        if derived is not None:
            values = derived(layer.name, [sample.index for sample in samples])
            progress.advance(len(samples))
            return values.reshape(len(values), -1) if flat else values
        for i, sample in enumerate(samples):
            row = _pooled(layer, layer[sample.index], pool)
            row = row.reshape(-1) if flat else row
            if values is None:
                values = np.empty((len(samples), *row.shape), row.dtype)
            values[i] = row
            progress.advance(1)
        assert values is not None
        return values

    return read


def _pooled(layer: StoredLayer, row: Array, pool: str) -> Array:
    axes = layer.entry.axes
    positions = tuple(i for i in range(len(axes)) if i != layer.entry.channel_axis - 1)
    if pool == "none" or not positions:
        return row
    if layer.entry.prefix_positions:
        index = [slice(None)] * row.ndim
        index[axes.index("token")] = slice(layer.entry.prefix_positions, None)
        row = row[tuple(index)]
    values = row.astype(np.float64)
    pooled: Array = values.mean(positions) if pool == "mean" else values.max(positions)
    return pooled.astype(np.float32)
