"""Export: layers of an archive as arrays for other tools, with ids and labels in the same order."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.archive.reader import Archive
from pipeline.archive.samples import StoredSample
from pipeline.archive.stored_layer import StoredLayer
from pipeline.foundation.arrays import Array
from pipeline.foundation.atomic_files import replacing
from pipeline.foundation.errors import ConfigError
from pipeline.foundation.progress import Progress

_LONGEST_NAME = 63  # of a variable in MATLAB


Derived = Callable[[str, Sequence[int]], Array]


class Target(StrEnum):
    """What is written: a file for each layer (`npy`, `csv`, `parquet`), or one with all of them."""

    NPY = "npy"
    NPZ = "npz"
    CSV = "csv"
    PARQUET = "parquet"
    ZARR = "zarr"
    MAT = "mat"


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
) -> list[Path]:
    """Write every layer of an archive, `(sample, …)`, and the table of its samples.

    Row i of every file is row i of `samples.csv`: the archive's order, without skipped samples.

    Args:
        archive: open; `Archive.with_layers` chooses layers.
        out: a new folder.
        to: the kind of file.
        rows: of these samples only.
        pool: mean or maximum over the positions of each channel, prefix tokens left out.
        flatten: everything after the sample axis as one; CSV and Parquet always are.
        derived: layer and rows → an array to write instead of the activations.

    Returns:
        The files, `samples.csv` first.

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
    writer = _writer(to)
    out.mkdir(parents=True)
    files = [out / "samples.csv"]
    with replacing(files[0]) as temporary:
        _write_table(temporary, samples)
    tabular = flatten or to in (Target.CSV, Target.PARQUET)
    with Progress("export", len(samples) * len(archive.layers), unit="activations") as progress:
        arrays = {
            layer.name: _read(layer, samples, pool, tabular, progress, derived)
            for layer in archive.layers.values()
        }
        return files + writer(out, arrays, samples)


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


Arrays = Mapping[str, Callable[[], Array]]
Write = Callable[[Path, Arrays, Sequence[StoredSample]], list[Path]]


def _writer(to: Target) -> Write:
    """Return what writes a kind of file.

    Raises:
        ConfigError: when a package that it needs is not installed.
    """
    needed = {Target.PARQUET: "pyarrow", Target.ZARR: "zarr"}.get(to)
    if needed:
        try:
            __import__(needed)
        except ImportError:
            raise ConfigError(f"export: {to} needs {needed}: pip install {needed}") from None
    return {
        Target.NPY: _npy, Target.NPZ: _npz, Target.CSV: _csv, Target.PARQUET: _parquet,
        Target.ZARR: _zarr, Target.MAT: _mat,
    }[to]  # fmt: skip


def _write_table(path: Path, samples: Sequence[StoredSample]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "label", "label_name", "row", "path"))
        writer.writerows((s.id, s.label, s.label_name, s.index, s.path) for s in samples)


def _each(
    out: Path, arrays: Arrays, ending: str, write: Callable[[Path, Array], None]
) -> list[Path]:
    """Write a file for each layer, whole or not at all."""
    files = []
    for name, read in arrays.items():
        path = out / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.{ending}"
        if path in files:
            raise ConfigError(f"export: two layers would both be {path}; choose with --layers")
        with replacing(path) as temporary:
            write(temporary, read())
        files.append(path)
    return files


def _npy(out: Path, arrays: Arrays, _samples: Sequence[StoredSample]) -> list[Path]:
    def write(path: Path, values: Array) -> None:
        with path.open("wb") as file:
            np.save(file, values)

    return _each(out, arrays, "npy", write)


def _csv(out: Path, arrays: Arrays, samples: Sequence[StoredSample]) -> list[Path]:
    def write(path: Path, values: Array) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("id", "label", *range(values.shape[1])))
            for sample, row in zip(samples, values.tolist(), strict=True):
                writer.writerow((sample.id, sample.label, *row))

    return _each(out, arrays, "csv", write)


def _parquet(out: Path, arrays: Arrays, samples: Sequence[StoredSample]) -> list[Path]:
    import pyarrow as pa
    from pyarrow import parquet

    def write(path: Path, values: Array) -> None:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        columns = {
            "id": [sample.id for sample in samples],
            "label": [sample.label for sample in samples],
            "activation": vectors,
        }
        parquet.write_table(pa.table(columns), path)

    return _each(out, arrays, "parquet", write)


def _npz(out: Path, arrays: Arrays, samples: Sequence[StoredSample]) -> list[Path]:
    path = out / "activations.npz"
    content: dict[str, Any] = {name: read() for name, read in arrays.items()}
    content["ids"] = np.array([sample.id for sample in samples])
    content["labels"] = np.array([sample.label for sample in samples])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **content)
    return [path]


def _mat(out: Path, arrays: Arrays, samples: Sequence[StoredSample]) -> list[Path]:
    from scipy.io import savemat

    names = [re.sub(r"\W", "_", name)[: _LONGEST_NAME - 2] for name in arrays]
    names = [name if name[0].isalpha() else f"x_{name}" for name in names]
    if len(set(names)) < len(names):
        raise ConfigError("export: two layers would have one name in MATLAB; choose with --layers")
    content: dict[str, Any] = {
        name: read() for name, read in zip(names, arrays.values(), strict=True)
    }
    content["ids"] = np.array([sample.id for sample in samples], dtype=object)
    content["labels"] = np.array([sample.label for sample in samples])
    path = out / "activations.mat"
    with replacing(path) as temporary, temporary.open("wb") as file:
        savemat(file, content, do_compression=True, long_field_names=True)
        file.seek(0)  # its description tells the time: the same arrays are the same bytes
        file.write(b"MATLAB 5.0 MAT-file, written by featuremaps".ljust(116))
    return [path]


def _zarr(out: Path, arrays: Arrays, samples: Sequence[StoredSample]) -> list[Path]:
    import zarr

    path = out / "activations.zarr"
    root = zarr.open_group(str(path), mode="w")
    for name, read in arrays.items():
        values = read()
        stored = root.create_array(name, shape=values.shape, dtype=values.dtype)
        stored[...] = values
    root.attrs["ids"] = [sample.id for sample in samples]
    root.attrs["labels"] = [sample.label for sample in samples]
    return [path]
