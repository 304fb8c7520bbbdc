"""Files of exported arrays: npy, npz, CSV, Parquet, Zarr, MATLAB."""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.samples import StoredSample
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError

RDM = "rdm"
RDM_AXES = (schema.SAMPLE, "other_sample")
_LONGEST_NAME = 63  # characters in a MATLAB variable name
Target = Literal["npy", "npz", "csv", "parquet", "zarr", "mat"]
"""Export format: one file per layer (npy, csv, parquet), or one file for all layers."""
Arrays = Mapping[str, Callable[[], Array]]


class About(NamedTuple):
    """Metadata of exported arrays: their provenance, and layer → axis names."""

    provenance: Mapping[str, Any]
    axes: Mapping[str, Sequence[str]]


Write = Callable[[Path, Arrays, Sequence[StoredSample], About], list[Path]]


def writer_of(to: str) -> Write:
    """Return the writer of an export format.

    Raises:
        ConfigError: when a required package is not installed.
    """
    package = {"parquet": "pyarrow", "zarr": "zarr"}.get(to)
    if package:
        try:
            __import__(package)
        except ImportError:
            raise ConfigError(
                f"export: {package} is not installed; run: pip install 'featuremaps[export]'"
            ) from None
    writers = {"npy": _npy, "npz": _npz, "csv": _csv, "parquet": _parquet, "zarr": _zarr}
    return writers.get(to, _mat)


def write_table(path: Path, samples: Sequence[StoredSample]) -> None:
    """Write `samples.csv`; text is quoted to distinguish ids made of digits from numbers."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(("id", "label", "label_name", "row", "path"))
        writer.writerows((s.id, s.label, s.label_name, s.index, s.path) for s in samples)


def _write_files(
    out: Path, arrays: Arrays, suffix: str, write: Callable[[Path, Array], None]
) -> list[Path]:
    """Write one file per layer."""
    files = []
    for name, read in arrays.items():
        path = out / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.{suffix}"
        if path.exists():
            raise ConfigError(
                f"export: {path.name} would be written twice; use --layers to leave out {name!r}"
            )
        write(path, read())
        files.append(path)
    return files


def _check_names(names: Sequence[str], *others: str) -> None:
    """Raise ConfigError if a layer would have the name of something else in the file."""
    taken = {*others}
    for name in names:
        if name in taken:
            raise ConfigError(
                f"export: the name {name!r} is already used in this file; use --layers to leave "
                "that layer out, or --to npy"
            )
        taken.add(name)


def _npy(out: Path, arrays: Arrays, _samples: Sequence[StoredSample], _: About) -> list[Path]:
    return _write_files(out, arrays, "npy", np.save)


def _csv(out: Path, arrays: Arrays, samples: Sequence[StoredSample], about: About) -> list[Path]:
    square = RDM_AXES in about.axes.values()

    def write(path: Path, values: Array) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            if square:
                writer.writerow(("id", *(sample.id for sample in samples)))
                for sample, row in zip(samples, values.tolist(), strict=True):
                    writer.writerow((sample.id, *("" if x != x else x for x in row)))
                return
            writer.writerow(("id", "label", *range(values.shape[1])))
            for sample, row in zip(samples, values.tolist(), strict=True):
                writer.writerow((sample.id, sample.label, *row))

    return _write_files(out, arrays, "csv", write)


def _parquet(
    out: Path, arrays: Arrays, samples: Sequence[StoredSample], about: About
) -> list[Path]:
    import pyarrow as pa
    from pyarrow import parquet

    def write(path: Path, values: Array) -> None:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        columns = {
            "id": [sample.id for sample in samples],
            "label": [sample.label for sample in samples],
            "activation": vectors,
        }
        metadata = {"featuremaps": json.dumps(about.provenance, ensure_ascii=False)}
        parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path)

    return _write_files(out, arrays, "parquet", write)


def _npz(out: Path, arrays: Arrays, samples: Sequence[StoredSample], _: About) -> list[Path]:
    path = out / "activations.npz"
    _check_names([*arrays], "ids", "labels", "file", "allow_pickle")  # arguments of savez
    content: dict[str, Any] = {name: read() for name, read in arrays.items()}
    content["ids"] = np.array([sample.id for sample in samples])
    content["labels"] = np.array([sample.label for sample in samples])
    np.savez(path, **content)
    return [path]


def _mat(out: Path, arrays: Arrays, samples: Sequence[StoredSample], _: About) -> list[Path]:
    from scipy.io import savemat

    names = [re.sub(r"\W", "_", name, flags=re.ASCII)[: _LONGEST_NAME - 2] for name in arrays]
    names = [name if name[0].isalpha() else f"x_{name}" for name in names]
    _check_names(names, "ids", "labels")
    content: dict[str, Any] = {
        name: read() for name, read in zip(names, arrays.values(), strict=True)
    }
    content["ids"] = np.array([sample.id for sample in samples], dtype=object)
    content["labels"] = np.array([sample.label for sample in samples])
    path = out / "activations.mat"
    with path.open("wb") as file:
        savemat(file, content, do_compression=True, long_field_names=True)
        file.seek(0)  # overwrite the timestamp: the same arrays give the same bytes
        file.write(b"MATLAB 5.0 MAT-file, written by featuremaps".ljust(116))
    return [path]


def _zarr(out: Path, arrays: Arrays, samples: Sequence[StoredSample], about: About) -> list[Path]:
    import zarr

    path = out / "activations.zarr"
    root = zarr.open_group(str(path), mode="w")
    sizes: dict[str, int] = {}

    def write(name: str, values: Array, axes: Sequence[str], dtype: Any) -> None:
        dimensions = [_dimension(sizes, *axis) for axis in zip(axes, values.shape, strict=False)]
        stored = root.create_array(
            name, shape=values.shape, dtype=dtype, dimension_names=dimensions
        )
        stored[...] = values

    names = {name: schema.escape(name).replace("\\", "%5C") for name in arrays}
    _check_names([*names.values()], "id", "label", "zarr.json")
    for name, column in (
        ("id", np.array([sample.id for sample in samples], dtype=object)),
        ("label", np.array([sample.label for sample in samples])),
    ):
        write(name, column, (schema.SAMPLE,), str if column.dtype == object else column.dtype)
    for name, read in arrays.items():
        values = read()
        write(names[name], values, about.axes[name], values.dtype)
    root.attrs["featuremaps"] = about.provenance
    return [path]


def _dimension(sizes: dict[str, int], axis: str, size: int) -> str:
    """Return a dimension name with one size in the whole group, as xarray requires: `height_14`."""
    return axis if sizes.setdefault(axis, size) == size else f"{axis}_{size}"
