"""Reading archives: the Python API, the commands that take an archive, other programs' readers."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from pipeline.archive.format.file_bytes import FileBytes
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ConfigError, LayerError
from pipeline.datasets.image_folder import ImageFolder
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Shard
from pipeline.training.activation_dataset import ActivationDataset
from tests.conftest import Run, tiny_extraction
from tests.helpers.stored_arrays import assert_same_arrays


def test_rows_slices_lists_and_masks(opened: Archive) -> None:
    layer = opened.layers["conv2"]
    whole = np.stack([layer[i] for i in range(7)])
    np.testing.assert_array_equal(layer[:], whole)
    np.testing.assert_array_equal(layer[2:6], whole[2:6])
    np.testing.assert_array_equal(layer[::-2], whole[::-2])
    np.testing.assert_array_equal(layer[[5, 0, -1]], whole[[5, 0, -1]])
    np.testing.assert_array_equal(layer[opened.stored], whole)
    np.testing.assert_array_equal(layer[-1], whole[-1])
    assert layer[3:3].shape == (0, 6, 8, 8)
    np.testing.assert_array_equal(layer.sample_max, whole.max(axis=(2, 3)))
    np.testing.assert_allclose(layer.sample_mean, whole.mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
    with pytest.raises(IndexError):
        layer[7]
    with pytest.raises(IndexError, match="a mask needs 7"):
        layer[np.array([True, False])]
    with pytest.raises(LayerError, match="did you mean conv2"):
        opened.layer("conv3")


def test_to_xarray(opened: Archive) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with opened.to_xarray() as tree:
            np.testing.assert_array_equal(
                tree["layers/fc"]["activation"].values, opened.layers["fc"][:]
            )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_dataset_over_layers_is_safe_with_workers(
    tiny_archive: Path, opened: Archive, workers: int
) -> None:
    data = ActivationDataset(tiny_archive, ["conv2", "fc"])
    data[0]  # opened here, before the workers are forked
    rows = list(DataLoader(data, batch_size=3, num_workers=workers))
    found = np.concatenate([layers["conv2"].numpy() for layers, _ in rows])
    np.testing.assert_array_equal(found, opened.layers["conv2"][:])
    labels = np.concatenate([label.numpy() for _, label in rows])
    np.testing.assert_array_equal(labels, [i % 4 for i in range(7)])
    assert len(pickle.loads(pickle.dumps(data))) == 7


def test_skipped_rows_are_masked_and_left_out_of_datasets(tmp_path: Path, photos: Path) -> None:
    (photos / "cats" / "broken.jpg").write_text("text")
    path = tmp_path / "a"
    extract(tiny_extraction(path, dataset=ImageFolder(root=str(photos)), on_error="skip"))
    with Archive.open(path) as archive:
        assert archive.stored.tolist() == [False] + [True] * 8
        assert np.isnan(archive.layers["fc"][0]).all()
        assert np.isfinite(archive.layers["fc"][archive.stored]).all()
    assert len(ActivationDataset(path, "fc")) == 8


def test_plan_tells_bytes_and_whether_they_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("plan", "model=tiny", "dataset=synthetic", "dataset.samples=100", "device=cpu")
    code, out, err = run(*command, "--json")
    assert code == 0, err
    facts = json.loads(out)
    conv1 = next(layer for layer in facts["layers"] if layer["name"] == "conv1")
    assert conv1["bytes"] == 100 * (4 * 16 * 16 * 4 + 2 * 4 * 4)
    assert facts["fits"]
    monkeypatch.setattr("pipeline.extraction.disk_check.free_bytes", lambda _path: 10_000)
    code, out, _ = run(*command)
    assert code == 3
    assert "DOES NOT FIT" in out


def test_the_plan_is_close_to_what_is_written(tiny_archive: Path) -> None:
    from pipeline.archive.format.manifest import Manifest
    from pipeline.archive.format.size_estimate import shard_bytes

    manifest = Manifest.read(tiny_archive)
    for number in range(len(manifest.shards)):
        size = (tiny_archive / "shards" / f"{number:05d}.h5").stat().st_size
        assert 0.7 < size / shard_bytes(manifest, number) <= 1.0


def test_verify_compare_and_pack_commands(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    code, out, _ = run("verify", str(tiny_archive))
    assert code == 0
    assert "7 samples (0 skipped), 3 shards" in out
    code, out, _ = run("compare", str(tiny_archive), str(tiny_archive), "--json")
    assert code == 0
    assert json.loads(out)["equal"]
    other = tmp_path / "other"
    extract(
        tiny_extraction(other, seed=1, model=tiny_extraction(other).model.__class__(weights=None))
    )
    code, out, _ = run("compare", str(tiny_archive), str(other))
    assert code == 1
    assert "NOT equal" in out
    packed = tmp_path / "packed.h5"
    code, _, err = run("pack", str(tiny_archive), str(packed))
    assert code == 0, err
    code, _, err = run("pack", str(tiny_archive), str(packed))
    assert code == 2
    assert "exists" in err
    code, out, _ = run("verify", str(packed), "--sha256")
    assert code == 0
    assert out.splitlines()[1:] == [f"{hashlib.sha256(packed.read_bytes()).hexdigest()}  {packed}"]
    code, out, _ = run("verify", str(tiny_archive), "--sha256")
    sums = dict(line.split("  ")[::-1] for line in out.splitlines()[1:])
    assert len(sums) == 3 + 4
    for file, digest in sums.items():
        assert hashlib.sha256(Path(file).read_bytes()).hexdigest() == digest
    broken = tmp_path / "broken"
    shutil.copytree(tiny_archive, broken)
    (broken / "shards" / "00001.h5").write_bytes(b"")
    code, _, err = run("verify", str(broken))
    assert code == 1
    assert "00001.h5: damaged shard" in err
    code, _, err = run("verify", str(tmp_path))
    assert code == 1


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_a_packed_file_needs_nothing_else(
    run: Run, opened: Archive, tmp_path: Path, engine: str
) -> None:
    import xarray

    packed = tmp_path / "packed.h5"
    assert run("pack", str(opened.path), str(packed))[0] == 0
    with h5py.File(packed) as file:
        assert not file["layers/conv2/activation"].is_virtual
        assert file["layers/conv2/activation"].chunks is None
        assert file.attrs["default"] == "layers"
        assert file["layers/conv2"].attrs["signal"] == "activation"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with xarray.open_dataset(packed, group="layers/conv2", engine=engine) as data:
            assert data["activation"].dims == ("sample", "channel", "height", "width")
            np.testing.assert_array_equal(data["activation"].values, opened.layers["conv2"][:])
        with xarray.open_dataset(packed, group="samples", engine=engine) as data:
            assert list(data["id"].values) == [sample.id for sample in opened.samples]


def test_stitch_completes_what_parts_have_written(
    run: Run, tiny_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "parts"
    extract(tiny_extraction(path, shard=Shard(index=0, count=2)))
    code, _, err = run("stitch", f"archive={path}")
    shards = Manifest.read(path).shards
    assert (code, len(shards)) == (1, 3)
    assert f"shards are missing (2 of 3), first 00001 (from row {shards[1][0]})" in err
    assert extract(tiny_extraction(path, shard=Shard(index=1, count=2))).complete
    (path / "COMPLETE.json").unlink()
    code, out, err = run("stitch", f"archive={path}")
    assert code == 0, err
    assert "7 samples" in out
    assert_same_arrays(tiny_archive, path)
    assert run("stitch", str(tmp_path / "nowhere"))[0] == 1
    assert not (tmp_path / "nowhere").exists()


def test_a_notebook_shows_archives_and_pictures(opened: Archive) -> None:
    from pipeline.renderers.grid import Grid
    from pipeline.rendering.views import sample_view

    html = opened._repr_html_()
    assert "<b>tiny</b> · 7 samples" in html
    assert html.count("<tr>") == 1 + len(opened.layers)
    shape = " × ".join(str(n) for n in opened.layers["conv1"].shape)
    assert f"<td>{shape}</td><td>sample, channel, height, width</td>" in html
    (picture, *_) = Grid(max_channels=4).draw(sample_view(opened, opened.samples[0]))
    assert picture._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_notebook_shows_samples_drawings_and_similarities(
    opened: Archive, tmp_path: Path
) -> None:
    from pipeline.renderers.grid import Grid
    from pipeline.renderers.overview import Overview
    from pipeline.renderers.show import show
    from pipeline.rendering.render import render
    from pipeline.rendering.views import sample_view
    from pipeline.similarity.similarity import similarity

    sample = opened.samples[2]
    statistics = {name: layer.statistics for name, layer in opened.layers.items()}
    view = sample_view(opened, sample, statistics)
    pictures = {p.layer: p for p in Grid(colormap="auto").draw(view)}
    assert np.array_equal(show(opened, sample.id, "conv1").rgb, pictures["conv1"].rgb)
    assert np.array_equal(show(opened, 2).rgb, next(Overview().draw(view)).rgb)
    assert show(opened, -1, "conv*").layer is None
    assert show(opened, np.int64(2), "conv1")._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(LayerError, match="no layer 'conv9'; did you mean"):
        show(opened, 0, "conv9")
    with pytest.raises(ConfigError, match="sample: no sample 'nosuch'"):
        show(opened, "nosuch")
    with pytest.raises(ConfigError, match="matches 7 samples"):
        show(opened, "synthetic*")

    html = render(
        opened, tmp_path / "a", {"grid": Grid(max_channels=1, tile_size=16)}
    )._repr_html_()
    drawn = 7 * len(opened.layers)
    assert f"<b>{drawn} pictures</b> of 7 samples" in html
    assert (html.count("<img "), html.count("<figure ")) == (8, 8)
    assert f"and {drawn - 8} more" in html

    html = similarity([opened.path], measures=("cka", "rsa"), bootstrap=0)._repr_html_()
    assert html.count("data:image/png;base64,") == 2


def test_what_a_notebook_shows_is_inert(opened: Archive) -> None:
    from dataclasses import replace
    from pathlib import Path

    from pipeline.archive.reading.notebook import archive_html

    evil = "<script>alert(1)</script>"
    manifest = opened.manifest
    layers = [replace(layer, alias=evil) for layer in manifest.layers]
    html = archive_html(Path(evil), replace(manifest, layers=layers), skipped=2)
    assert "<script" not in html
    assert "2 skipped" in html


def test_items_carry_row_and_id_where_asked(opened: Archive) -> None:
    data = ActivationDataset(opened.path, "conv1", ids=True)
    activations, label, row, name = data[3]
    assert (row, name, label) == (3, "synthetic-000003", opened.samples[3].label)
    np.testing.assert_array_equal(activations["conv1"], opened.layers["conv1"][3])
    assert len(ActivationDataset(opened.path, "conv1")[3]) == 2


def test_xarray_finds_samples_by_id(opened: Archive) -> None:
    tree = opened.to_xarray()
    layer = tree["layers/conv1"]["activation"]
    found = layer.set_index(sample="id").sel(sample="synthetic-000004")
    np.testing.assert_array_equal(found.values, opened.layers["conv1"][4])
    tree.close()


def test_xarray_has_the_selected_layers(opened: Archive) -> None:
    with opened.with_layers("conv*").to_xarray() as tree:
        assert sorted(tree["layers"].children) == ["conv1", "conv2"]
        np.testing.assert_array_equal(
            tree["layers/conv2"]["activation"].values, opened.layers["conv2"][:]
        )


def test_another_process_opens_a_pickled_archive_for_itself(opened: Archive) -> None:
    part: Archive = pickle.loads(pickle.dumps(opened.with_layers(["conv*"])))
    assert list(part.layers) == ["conv1", "conv2"]
    layer = pickle.loads(pickle.dumps(opened.layers["conv1"]))
    np.testing.assert_array_equal(layer[2], opened.layers["conv1"][2])
    assert repr(opened) == f"<Archive {str(opened.path)!r}: tiny, 7 samples, 7 layers>"
    assert repr(layer).startswith("<StoredLayer 'conv1': 7 sample × 4 channel × ")
    assert layer.ndim == 4


def test_a_file_open_at_exit_is_closed_silently(
    tiny_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FileBytes(tiny_archive / "archive.h5")
    descriptor = file._descriptor
    monkeypatch.setattr("pipeline.archive.format.file_bytes.os", None)  # as the interpreter does
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
