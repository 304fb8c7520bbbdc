"""The archive: what is stored, how others read it, resuming, parts, refusals."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from xxhash import xxh3_64_intdigest

from pipeline.archive.format import schema, statistics
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.row_ranges import shard_ranges
from pipeline.archive.format.tree import create_rows
from pipeline.archive.reading.archive import Archive
from pipeline.common.differences import differences
from pipeline.common.errors import ArchiveError
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.settings import Shard, Storage
from pipeline.extraction.statistics import of_batch
from pipeline.models.tiny import TinyModel
from tests.conftest import Run, tiny_extraction
from tests.helpers.edited_archives import edited
from tests.helpers.stored_arrays import assert_same_arrays
from tests.helpers.tiny_formula import formula


def activations_by_hand(archive: Archive) -> dict[str, np.ndarray]:
    """Recompute every layer from the stored inputs."""
    pixels = np.stack([archive.image(i) for i in range(len(archive))]).transpose(0, 3, 1, 2)
    x = (torch.from_numpy(pixels.copy()) / 255 - 0.5) / 0.5
    values = formula(TinyModel().load().module, x)
    return {name: value.numpy() for name, value in values.items()}


def test_stored_activations_equal_the_formula_on_the_stored_inputs(opened: Archive) -> None:
    expected = activations_by_hand(opened)
    assert list(opened.layers) == ["conv1", "bn1", "relu:0", "conv2", "relu:1", "pool", "fc"]
    for name, layer in opened.layers.items():
        for i in range(len(opened)):
            np.testing.assert_allclose(
                layer[i], expected[name][i], rtol=1e-5, atol=1e-5, err_msg=name
            )


def test_statistics_equal_numpy_over_everything_stored(opened: Archive) -> None:
    for name, layer in opened.layers.items():
        values = np.stack([layer[i] for i in range(len(layer))]).astype(np.float64)
        values = values.reshape(*values.shape[:2], -1)
        found = layer.statistics
        np.testing.assert_allclose(
            found["mean"], values.mean(axis=(0, 2)), rtol=1e-5, atol=1e-7, err_msg=name
        )
        np.testing.assert_allclose(
            found["std"], values.std(axis=(0, 2)), rtol=1e-4, atol=1e-6, err_msg=name
        )
        np.testing.assert_array_equal(found["min"], values.min(axis=(0, 2)))
        np.testing.assert_array_equal(found["max"], values.max(axis=(0, 2)))
        np.testing.assert_allclose(found["zero_fraction"], (values == 0).mean(axis=(0, 2)))
        np.testing.assert_array_equal(found["nonfinite_count"], 0)
    with h5py.File(opened.path / "archive.h5") as file:
        sample_max = file["layers/conv2/statistics/sample_max"][()]
        stored = file["layers/conv2/activation"][()]
        np.testing.assert_array_equal(sample_max, stored.max(axis=(2, 3)))
        sample_mean = file["layers/conv2/statistics/sample_mean"][()]
        np.testing.assert_allclose(sample_mean, stored.mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)


def test_rows_are_the_datasets_items_in_order(opened: Archive) -> None:
    assert [sample.id for sample in opened.samples] == [f"synthetic-{i:06d}" for i in range(7)]
    assert [sample.label for sample in opened.samples] == [i % 4 for i in range(7)]
    assert opened.samples[2].label_name == "class 2"
    assert repr(opened.samples).startswith(f"<Samples: 7 samples, ['{opened.samples[0].id}', ")


def test_the_index_and_the_shards_agree_and_survive_a_move(opened: Archive, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "elsewhere"
    shutil.copytree(opened.path, moved)
    with h5py.File(moved / "archive.h5") as file:
        for name, layer in opened.layers.items():
            whole = file[f"layers/{name}/activation"]
            assert whole.is_virtual
            np.testing.assert_array_equal(whole[()], np.stack([layer[i] for i in range(7)]))
            assert [str(axis) for axis in whole.attrs["axes"]] == ["sample", *layer.entry.axes]
            assert whole.attrs["module_type"] == layer.entry.module_type
            assert [whole.dims[i][0].name.rsplit("/", 1)[-1] for i in range(whole.ndim)] == list(
                layer.axes
            )
    with h5py.File(moved / "shards" / "00000.h5") as shard:
        for name in ("inputs", "layers/conv1"):
            rows = shard[f"{name}/{'image' if name == 'inputs' else 'activation'}"]
            assert rows.chunks is None
            sums = [xxh3_64_intdigest(row.tobytes()) for row in rows[()]]
            assert shard[f"{name}/checksum"][()].tolist() == sums


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_reads_named_axes(opened: Archive, engine: str) -> None:
    import xarray

    expected = np.stack([opened.layers["conv2"][i] for i in range(7)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the readers' own
        tree = (
            xarray.open_datatree(opened.path / "archive.h5", engine=engine, phony_dims="sort")
            if (engine == "h5netcdf")
            else xarray.open_datatree(opened.path / "archive.h5", engine=engine)
        )
        with tree:
            activation = tree["layers/conv2"]["activation"]
            assert activation.dims == ("sample", "channel", "height", "width")
            np.testing.assert_array_equal(activation.values, expected)
            assert tree["layers/fc"]["activation"].dims == ("sample", "channel")
            assert tree["inputs"]["image"].dims == ("sample", "channel", "height", "width")
            assert list(tree["samples"]["id"].values) == [sample.id for sample in opened.samples]
            assert tree["layers/conv2/statistics"]["mean"].dims == ("channel",)


def test_complete_json_holds_a_digest_of_every_file(opened: Archive) -> None:
    from pipeline.common.atomic_files import file_sha256

    names = {
        "manifest.json",
        "archive.h5",
        "errors.jsonl",
        *(f"shards/{i:05d}.h5" for i in range(3)),
    }
    assert set(opened.complete.files) == names
    for name, digest in opened.complete.files.items():
        path = opened.path / name
        found = ArchiveFile(path).footer.digest if path.suffix == ".h5" else file_sha256(path)
        assert found == digest
        assert digest.startswith("xxh3-128:") is (path.suffix == ".h5")
    assert opened.complete.samples == 7
    assert opened.complete.skipped == 0


def test_same_command_same_bytes_with_workers_or_without(
    tiny_archive: Path, tmp_path: Path
) -> None:
    extract(tiny_extraction(tmp_path / "again", loader=Loader(batch_size=2, num_workers=2)))
    assert_same_arrays(tiny_archive, tmp_path / "again")


def test_another_batch_size_differs_by_rounding_only(opened: Archive, tmp_path: Path) -> None:
    extract(tiny_extraction(tmp_path / "other", loader=Loader(batch_size=5, num_workers=0)))
    with Archive.open(tmp_path / "other") as other:
        for name, layer in opened.layers.items():
            for i in range(7):
                limit = 1e-4 * float(np.abs(layer[i]).max())
                np.testing.assert_allclose(other.layers[name][i], layer[i], rtol=0, atol=limit)


@pytest.mark.parametrize(
    "order", [pytest.param((0, 1, 2, 3), marks=pytest.mark.slow), (2, 0, 3, 1)]
)
def test_four_parts_in_any_order_equal_one_process_with_one_shard(
    tiny_archive: Path, tmp_path: Path, order: tuple[int, ...]
) -> None:
    """Also every statistic, to rounding, although it was merged from other parts."""
    extract(tiny_extraction(tmp_path / "one", storage=Storage()))
    path = tmp_path / "parts"
    for index in order:
        shard = Shard(index=index, count=4)
        made = extract(tiny_extraction(path, shard=shard, storage=Storage()))
        assert made.complete == (index == order[-1])  # the last part joins
    assert made.missing == 0
    assert len(list((path / "shards").glob("*.h5"))) == 4
    assert_same_arrays(tmp_path / "one", path)
    assert_same_arrays(tmp_path / "one", tiny_archive)


def test_statistics_do_not_depend_on_how_the_dataset_is_divided() -> None:
    chance = np.random.default_rng(0)
    scale = np.logspace(-3, 1, 8)[:, None, None]
    values = (chance.normal(size=(64, 8, 5, 5)) * scale + 100).astype(np.float32)
    batch = of_batch(torch.from_numpy(values), 1)
    names = [field.name for field in dataclasses.fields(batch)]
    assert [f.name for f in dataclasses.fields(statistics.Statistics)] == list(
        schema.SHARD_STATISTICS
    )
    found = []
    for _ in range(20):
        cuts = np.sort(chance.choice(np.arange(1, 64), chance.integers(0, 9), replace=False))
        parts = [
            statistics.over_samples(
                statistics.Statistics(*(getattr(batch, name)[rows] for name in names)),
                np.ones(len(rows), bool),
            )
            for rows in np.split(np.arange(64), cuts)
        ]
        parts = [parts[i] for i in chance.permutation(len(parts))]
        found.append(statistics.merge(parts).figures(values[:, 0].size))
    for other in found:
        np.testing.assert_allclose(other["mean"], found[0]["mean"], rtol=1e-14)
        np.testing.assert_allclose(other["std"], found[0]["std"], rtol=1e-9)
    wide = values.astype(np.float64)
    # the per-sample means are float32, which is what limits the agreement
    np.testing.assert_allclose(found[0]["mean"], wide.mean(axis=(0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(found[0]["std"], wide.std(axis=(0, 2, 3)), rtol=2e-4)


def test_variances_far_from_zero_keep_their_digits() -> None:
    """Means 10³ times the deviation: the variance is right to 1e-5, and so are parts of it."""
    chance = np.random.default_rng(1)
    values = (chance.normal(size=(40, 6, 12, 12)) + 1000).astype(np.float32)
    batch = of_batch(torch.from_numpy(values), 1)
    names = [field.name for field in dataclasses.fields(batch)]
    parts = [
        statistics.over_samples(
            statistics.Statistics(*(getattr(batch, name)[rows] for name in names)),
            np.ones(len(rows), bool),
        )
        for rows in np.split(np.arange(40), [1, 7, 30])
    ]
    exact = values.astype(np.float64).var(axis=(0, 2, 3))
    np.testing.assert_allclose(
        statistics.merge(parts).figures(40 * 144)["std"] ** 2, exact, rtol=1e-5
    )


def test_shard_ranges_cover_every_row_once() -> None:
    for samples in (1, 2, 7, 100):
        for batch in (1, 3, 16):
            for count in (1, 2, 5, 300):
                ranges = shard_ranges(samples, batch, count)
                assert [row for start, stop in ranges for row in range(start, stop)] == list(
                    range(samples)
                )
                assert all(start % batch == 0 and stop > start for start, stop in ranges)


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    extract(tiny_extraction(tmp_path / "a"))
    manifest = tmp_path / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ArchiveError, match="was modified"):
        Manifest.read(tmp_path / "a")
    manifest.write_text("{")
    with pytest.raises(ArchiveError, match="damaged manifest"):
        Archive.open(tmp_path / "a")


def test_a_manifest_without_layers_is_damaged_and_one_without_versions_is_shown(
    tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    path = edited(tiny_archive, tmp_path / "a") / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"environment": {}}))
    code, out, _ = run("info", str(tmp_path / "a"))
    assert (code, "on unknown, Python unknown" in out) == (0, True), out
    path.write_text(json.dumps(content | {"layers": []}))
    for words in (("info",), ("compare", str(tiny_archive))):
        code, _, err = run(*words, str(tmp_path / "a"))
        assert (code, "damaged manifest (ValueError: no layers" in err) == (1, True), err


def test_filters_of_the_first_convolution_are_kept(opened: Archive) -> None:
    weights = TinyModel().load().module.state_dict()
    np.testing.assert_array_equal(opened.filters["conv1"], weights["conv1.weight"].numpy())
    assert list(opened.filters) == ["conv1"]  # conv2 has four input channels, but sees no image


def test_chunks_are_even_and_bounded() -> None:
    small, largest = schema.SMALL_CHUNK_BYTES, schema.CHUNK_BYTES
    shared = schema.chunk_shape((10**6, small // 4), 4, channel_axis=1)
    assert shared == (1, small // 4)  # exactly so large: a chunk each
    assert schema.chunk_shape((10**6, small // 8), 4, channel_axis=1) == (2, small // 8)
    assert schema.chunk_shape((1, 3), 4, channel_axis=1) == (1, 3)
    huge = schema.chunk_shape((5, 3, 2048, 2048), 4, channel_axis=1)
    assert huge == (1, 1, 2048, 2048)  # one channel is the least
    for channels in (1, 7, 64, 65, 100, 513):
        for side in (14, 56, 112, 224, 500):
            one = 4 * side * side
            chunk = schema.chunk_shape((9, channels, side, side), 4, channel_axis=1)
            if one * channels <= small:
                continue
            assert chunk[0] == 1
            assert chunk[1] * one <= max(largest, one)
            parts = -(-channels // chunk[1])
            assert parts == -(-channels // max(1, largest // one))  # as few as there can be
            assert parts * chunk[1] - channels < parts  # even: little is padding


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 1, "b": [2]}, ["b: null → [2]"]),
        ({"a": {"b": 1}}, {"a": {}}, ["a.b: 1 → null"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a[1]: 2 → 3"]),
        ({"a": [1, 2]}, {"a": [1]}, ["a: [1, 2] → [1]"]),
        ({"a": "é" * 58}, {"a": "é" * 59}, ["a: " + '"' + "é" * 58 + '" → "' + "é" * 56 + "…"]),
    ],
)
def test_differences_name_what_was_added_removed_and_changed(
    old: object, new: object, lines: list[str]
) -> None:
    assert differences(old, new) == lines


def test_chunks_of_large_maps_are_parts_of_their_channels(tmp_path: Path) -> None:
    axes = ("channel", "height", "width")
    with h5py.File(tmp_path / "file.h5", "w") as file:
        data = create_rows(file, "first", (3, 64, 112, 112), "float32", axes, codec="gzip")
        assert data.chunks == (1, 16, 112, 112)
        last = create_rows(
            file, "last", (3, 112, 112, 64), "float32", (*axes[1:], axes[0]), codec="gzip"
        )
        assert last.chunks == (1, 112, 112, 16)
        plain = create_rows(file, "plain", (3, 64, 112, 112), "float32", axes)
        assert plain.chunks is None
        assert plain.id.get_offset() is not None  # its place is taken, nothing is written there
