"""Exported arrays are the stored ones, in the order of the table beside them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
from scipy.io import loadmat

from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.export import export
from pipeline.common.errors import ConfigError
from pipeline.renderers.map_arrays import channel_maps, pca_maps
from tests.conftest import Run, photo, tiny_extraction
from tests.helpers.random_archives import archive_of, random


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def provenance_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "provenance.json").read_text("utf-8"))
    return content


def read(kind: str, folder: Path, layer: str) -> np.ndarray:
    """Return an exported layer with that kind's own reader."""
    if kind == "npy":
        return np.asarray(np.load(folder / f"{layer}.npy", allow_pickle=False))
    if kind == "npz":
        with np.load(folder / "activations.npz", allow_pickle=False) as content:
            assert content["ids"].tolist() == [row["id"] for row in table(folder)]
            return np.asarray(content[layer])
    if kind == "mat":
        content: dict[str, Any] = loadmat(folder / "activations.mat")
        assert [str(one[0]) for one in content["ids"].ravel()] == [r["id"] for r in table(folder)]
        return np.asarray(content[layer])
    if kind == "zarr":
        import zarr

        root = zarr.open_group(str(folder / "activations.zarr"), mode="r")
        assert root["id"][:].tolist() == [row["id"] for row in table(folder)]
        assert root["label"][:].tolist() == [int(row["label"]) for row in table(folder)]
        assert root[layer].metadata.dimension_names[0] == "sample"
        assert root.attrs["featuremaps"] == provenance_of(folder)
        return np.asarray(root[layer])
    if kind == "parquet":
        from pyarrow import parquet

        metadata = parquet.read_schema(folder / f"{layer}.parquet").metadata
        assert json.loads(metadata[b"featuremaps"]) == provenance_of(folder)
        found = parquet.read_table(folder / f"{layer}.parquet").to_pydict()
        assert found["id"] == [row["id"] for row in table(folder)]
        return np.array(found["activation"], np.float32)
    with (folder / f"{layer}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == [row["id"] for row in table(folder)]
    return np.array([[float(value) for value in row[2:]] for row in rows], np.float32)


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "parquet", "zarr", "mat"])
def test_every_kind_holds_the_stored_values(
    run: Run, tiny_archive: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    code, said, err = run("export", str(tiny_archive), str(out), "--to", kind)
    assert code == 0, err
    assert str(out / "samples.csv") in said
    with Archive.open(tiny_archive) as archive:
        for layer in ("conv1", "conv2", "fc"):
            stored = archive.layers[layer][:]
            expected = stored.reshape(7, -1) if kind in ("csv", "parquet") else stored
            np.testing.assert_array_equal(read(kind, out, layer), expected)
        rows = table(out)
        assert [row["id"] for row in rows] == [sample.id for sample in archive.samples]
        assert [int(row["label"]) for row in rows] == [s.label for s in archive.samples]


def test_layers_samples_pooled_and_flat(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    with Archive.open(tiny_archive) as archive:
        stored = archive.layers["conv2"][:]
    words = ("--layers", "conv*", "--samples", "5", "1:3")
    for name, more, expected in (
        ("mean", ("--pool", "mean"), stored[[5, 1, 2]].mean(axis=(2, 3))),
        ("max", ("--pool", "max"), stored[[5, 1, 2]].max(axis=(2, 3))),
        ("flat", ("--flatten",), stored[[5, 1, 2]].reshape(3, -1)),
    ):
        out = tmp_path / name
        assert run("export", str(tiny_archive), str(out), *words, *more)[0] == 0
        np.testing.assert_allclose(np.load(out / "conv2.npy"), expected, rtol=1e-6)
        assert [int(row["row"]) for row in table(out)] == [5, 1, 2]
        assert sorted(path.name for path in out.iterdir()) == [
            "conv1.npy", "conv2.npy", "provenance.json", "samples.csv",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "selected"),
    [([False] * 5 + [True, True], [5, 6]), (np.arange(7) < 2, [0, 1]), ((4, -1), [4, 6])],
)
def test_rows_in_python(tiny_archive: Path, tmp_path: Path, rows: Any, selected: list[int]) -> None:
    out = tmp_path / "out"
    files = export(tiny_archive, str(out), "npy", rows=rows)
    with Archive.open(tiny_archive) as archive:
        stored = archive.layers["fc"][selected]
    assert [int(row["row"]) for row in table(out)] == selected
    np.testing.assert_array_equal(np.load(files[-1]), stored)


def test_skipped_samples_are_left_out(run: Run, photos: Path, tmp_path: Path) -> None:
    (photos / "cats" / "empty.png").write_bytes(b"")
    words = ("model=tiny", "dataset=image_folder", f"dataset.root={photos}", "on_error=skip")
    assert run("extract", *words, "device=cpu")[0] == 4
    out = tmp_path / "out"
    assert run("export", str(tmp_path / "run"), str(out))[0] == 0
    values = np.load(out / "conv1.npy")
    assert len(values) == len(table(out)) == 8
    assert np.isfinite(values).all()


def test_an_export_says_what_it_is_of(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--layers", "conv1", "--samples", "2", "--maps", "mean")
    assert run("export", str(tiny_archive), str(out), *words)[0] == 0
    about = provenance_of(out)
    manifest = json.loads((tiny_archive / "manifest.json").read_text("utf-8"))
    assert about["fingerprint"] == manifest["fingerprint"]
    assert about["model"]["weights_sha256"] == manifest["identity"]["model"]["weights_sha256"]
    assert about["dataset"] == manifest["identity"]["dataset"]
    assert about["environment"]["versions"] == manifest["environment"]["versions"]
    assert [layer["name"] for layer in about["layers"]] == ["conv1"]
    assert about["export"] == {"values": "mean maps", "pool": "none", "flatten": False, "rows": 1}


def test_ids_stay_text(tmp_path: Path, run: Run) -> None:
    """Quoted, so that readers with types by column (R's colClasses) do not drop zeros."""
    import pandas as pd

    from pipeline.datasets.sequence import FromSequence
    from pipeline.extraction.extract import extract

    path = tmp_path / "archive"
    data = FromSequence(items=[photo(0), photo(1)], ids=("001", "1e5"))
    extract(tiny_extraction(path, dataset=data))
    for kind in ("csv", "zarr"):
        assert run("export", str(path), str(tmp_path / kind), "--to", kind)[0] == 0
    for name in ("samples.csv", "conv1.csv"):
        text = (tmp_path / "csv" / name).read_text("utf-8")
        assert text.splitlines()[1].startswith('"001",')
        found = pd.read_csv(tmp_path / "csv" / name, dtype={"id": str})
        assert found["id"].tolist() == ["001", "1e5"]


def test_zarr_opens_with_named_dimensions(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    import xarray

    assert run("export", str(tiny_archive), str(tmp_path / "out"), "--to", "zarr")[0] == 0
    data = xarray.open_zarr(tmp_path / "out" / "activations.zarr", consolidated=False)
    with Archive.open(tiny_archive) as archive:
        for name in ("conv1", "conv2", "fc"):
            axes = [dimension.split("_")[0] for dimension in data[name].dims]
            assert axes == ["sample", *archive.layers[name].entry.axes]
            np.testing.assert_array_equal(data[name].values, archive.layers[name][:])
        assert data["id"].values.tolist() == list(archive.samples.ids)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "//", "zarr.json/x", "50%"])
def test_names_that_zarr_refuses_or_nests_are_escaped(tmp_path: Path, name: str) -> None:
    import xarray

    values = {name: random(3, 2), "a": random(3, 4)}
    with Archive.open(archive_of(tmp_path / "a", values)) as archive:
        (*_, file) = export(archive, tmp_path / "out", "zarr")
    data = xarray.open_zarr(file, consolidated=False)
    (escaped,) = {*data} - {"a", "id", "label"}
    assert unquote(escaped) == name
    np.testing.assert_array_equal(data[escaped].values, values[name])
    np.testing.assert_array_equal(data["a"].values, values["a"])


@pytest.mark.parametrize(
    ("kind", "name"),
    [("npz", "ids"), ("npz", "labels"), ("npz", "file"), ("npz", "allow_pickle"), ("mat", "ids"),
     ("mat", "labels"), ("zarr", "id"), ("zarr", "label"), ("zarr", "zarr.json"),
     ("csv", "samples")],
)  # fmt: skip
def test_a_layer_does_not_replace_another_part_of_an_export(
    tmp_path: Path, kind: str, name: str
) -> None:
    with Archive.open(archive_of(tmp_path / "a", {name: random(3, 2)})) as archive:
        with pytest.raises(ConfigError, match="use --layers to leave"):
            export(archive, tmp_path / "out", kind)
        assert not (tmp_path / "out").exists()
        export(archive, tmp_path / "out", "npy")
    np.testing.assert_array_equal(read("npy", tmp_path / "out", name), random(3, 2))


def test_names_that_matlab_lacks(tmp_path: Path) -> None:
    names = {"日本": "x___", "é.1": "x___1", "a.é": "a__"}
    values = {name: random(3, 2, seed=i) for i, name in enumerate(names)}
    with Archive.open(archive_of(tmp_path / "a", values)) as archive:
        (*_, file) = export(archive, tmp_path / "out", "mat")
    found = loadmat(file)
    for name, variable in names.items():
        np.testing.assert_array_equal(found[variable], values[name])


def test_cite_states_model_weights_dataset_and_versions(run: Run, tiny_archive: Path) -> None:
    identity = json.loads((tiny_archive / "manifest.json").read_text("utf-8"))["identity"]
    code, out, err = run("cite", str(tiny_archive))
    assert (code, err) == (0, "")
    for text in (
        "@misc{activations-", "@software{featuremaps,", "Activations of tiny (weights DEFAULT)",
        identity["model"]["weights_sha256"], identity["dataset"]["sha256_of_ids_and_labels"],
        f"torch {identity['versions']['torch']}", "synthetic, 7 samples, 0 skipped",
    ):  # fmt: skip
        assert text in out
    code, out, _ = run("cite", str(tiny_archive), "--json")
    assert json.loads(out)["dataset"] == identity["dataset"]
    code, _, err = run("cite", str(tiny_archive / "nope"))
    assert (code, err.count("\n")) == (1, 1)


def test_cite_says_that_weights_are_random(run: Run, tmp_path: Path) -> None:
    from pipeline.extraction.extract import extract
    from pipeline.models.tiny import TinyModel

    extract(tiny_extraction(tmp_path / "a_%", model=TinyModel(weights=None), seed=3))
    assert "Activations of tiny (random weights, seed 3)" in run("cite", str(tmp_path / "a_%"))[1]


def test_mistakes_are_one_line(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, text in (
        (("--layers", "conv3"), "no layer 'conv3'; did you mean conv"),
        (("--samples", "nosuch"), "--samples: no sample 'nosuch'"),
        (("--to", "xls"), "invalid choice: 'xls'"),
    ):
        code, _, err = run("export", str(tiny_archive), str(out), *words)
        assert code == 2
        assert text in err
        assert err.count("\n") == 1
        assert not out.exists()
    out.mkdir()
    code, _, err = run("export", str(tiny_archive), str(out))
    assert code == 2
    assert "already exists; choose a new folder" in err


@pytest.mark.parametrize("kind", ["mean", "max", "std", "norm"])
def test_mean_maps_are_exported_as_arrays(
    run: Run, tiny_archive: Path, tmp_path: Path, kind: str
) -> None:
    words = (
        "export",
        str(tiny_archive),
        str(tmp_path / "out"),
        "--maps",
        kind,
        "--layers",
        "conv*",
    )
    assert run(*words)[0] == 0
    numpys = {"mean": np.mean, "max": np.max, "std": np.std, "norm": np.linalg.norm}[kind]
    with Archive.open(tiny_archive) as archive:
        for name in ("conv1", "conv2"):
            values = archive.layers[name][:].astype(np.float64)
            expected = numpys(values, axis=1)
            np.testing.assert_allclose(read("npy", tmp_path / "out", name), expected, rtol=1e-5)


def test_projections_are_exported_as_arrays(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    words = ("--maps", "pca", "--layers", "conv1", "--samples", "2:5")
    assert run("export", str(tiny_archive), str(tmp_path / "out"), *words)[0] == 0
    found = read("npy", tmp_path / "out", "conv1")
    with Archive.open(tiny_archive) as archive:
        values = np.moveaxis(archive.layers["conv1"][:].astype(np.float64), 1, -1)
    flat = values.reshape(-1, values.shape[-1])
    centred = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    scores = (centred @ directions[:3].T).reshape(*values.shape[:-1], 3)[2:5]
    assert found.shape == scores.shape
    for i in range(3):  # the sign of a component is free
        sign = np.sign((scores[..., i] * found[..., i]).sum())
        np.testing.assert_allclose(found[..., i], sign * scores[..., i], atol=1e-4)


def test_maps_that_are_not_finite(tmp_path: Path) -> None:
    values = random(6, 4, 5, 5)
    values[0, 0, 0, 0], values[1, 1, 1, 1], values[2, :, 2, 2] = np.inf, np.nan, -np.inf
    with (
        Archive.open(archive_of(tmp_path / "a", {"m": values})) as archive,
        np.errstate(all="raise"),
    ):
        maps = pca_maps(archive, "m")
        np.testing.assert_array_equal(np.isnan(maps).all(-1), ~np.isfinite(values).all(1))
        assert np.isfinite(maps[3:]).all()
        with pytest.raises(ConfigError, match="unknown statistic 'meen'; did you mean mean"):
            channel_maps(archive, "m", statistic="meen")


@pytest.mark.parametrize("pool", ["none", "mean", "max"])
def test_pools_are_named_and_do_not_overflow(tmp_path: Path, pool: str) -> None:
    values = {"huge": np.abs(random(3, 2, 8, 8)) * np.float32(5e37), "small": random(3, 4, 3, 3)}
    with Archive.open(archive_of(tmp_path / "a", values)) as archive:
        export(archive, tmp_path / "out", "npy", pool=pool)
        for wrong in ({"to": "np"}, {"to": "npy", "pool": "average"}):
            with pytest.raises(ConfigError, match=r"export: unknown (format 'np'|pool 'average')"):
                export(archive, tmp_path / "no", **wrong)
        assert not (tmp_path / "no").exists()
    for name, stored in values.items():
        exact = stored.astype(np.float64)
        expected = exact if pool == "none" else getattr(exact, pool)(axis=(2, 3))
        found = np.load(tmp_path / "out" / f"{name}.npy")
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_vectors_have_no_maps_to_export(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    code, _, err = run("export", str(tiny_archive), str(tmp_path / "o"), "--maps", "pca")
    assert code == 2
    assert "fc: a vector, which has no positions" in err
    code, _, err = run(
        "export", str(tiny_archive), str(tmp_path / "p"), "--maps", "pca", "--pool", "max"
    )
    assert code == 2
    assert "give one of them" in err


def test_a_failed_export_leaves_nothing(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    """Else its first layers would look like all of them."""
    bad = tmp_path / "bad"
    shutil.copytree(tiny_archive, bad)
    shard = bad / "shards" / "00002.h5"
    with h5py.File(shard) as file:
        place = file["layers/fc/activation"].id.get_offset()
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    for kind in ("npy", "zarr"):
        code, _, err = run("export", str(bad), str(tmp_path / "x"), "--to", kind)
        assert (code, "00002.h5" in err) == (1, True)
        assert [path.name for path in tmp_path.iterdir()] == ["bad"]
