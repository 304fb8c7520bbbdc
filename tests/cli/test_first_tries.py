"""What people type first about layers works, or is answered by the line to type next."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.cli.main import main
from pipeline.common.errors import ConfigError
from pipeline.extraction.extract import extract
from pipeline.models.tiny import TinyModel
from pipeline.rendering.file_names import folder_name, sample_stem
from pipeline.rendering.sample_selection import choose_rows
from pipeline.rendering.views import sample_view
from tests.conftest import Run, tiny_extraction


def test_an_exact_name_is_kept_whatever_the_types_are(run: Run) -> None:
    words = ("model=resnet18", "model.weights=null", "layers.include=[fc,layer1.*]")
    code, out, _ = run("layers", *words, "layers.types=[Conv2d]")
    assert code == 0
    found = [line.split()[1] for line in out.splitlines()[1:-1]]
    assert found == [*(f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2)), "fc"]


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("penultimate", ["fc:in"]),
        ("[-3,-1]", ["layer4.1.relu:1", "fc"]),
        pytest.param("last", ["fc"], marks=pytest.mark.slow),
    ],
)
def test_names_that_hold_across_models(run: Run, include: str, expected: list[str]) -> None:
    words = ("model=resnet18", "model.weights=null", f"layers.include={include}", "--json")
    code, out, err = run("layers", *words)
    assert code == 0, err
    assert [row["name"] for row in json.loads(out)["layers"]] == expected


def test_the_penultimate_layer_is_what_the_classifier_is_given(tmp_path: Path) -> None:
    layers = LayerSelector(include=("penultimate", "last"))
    extract(tiny_extraction(tmp_path / "a", layers=layers))
    with Archive.open(tmp_path / "a") as archive:
        assert list(archive.layers) == ["fc:in", "fc"]
        weights = TinyModel().load().module.state_dict()
        given, result = (archive.layers[name][:] for name in ("fc:in", "fc"))
        expected = given @ weights["fc.weight"].numpy().T + weights["fc.bias"].numpy()
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_types_alone_are_those_of_the_whole_model(run: Run) -> None:
    code, out, _ = run("layers", "model=resnet18", "model.weights=null", "layers.types=[ReLU]")
    assert code == 0
    assert out.splitlines()[-1].startswith("17 selected")
    for empty in ("null", "[]"):
        words = ("model=vgg11", "model.weights=null", f"layers.types={empty}", "--json")
        rows = json.loads(run("layers", *words)[1])["layers"]
        assert {row["type"] for row in rows} == {"Conv2d", "ReLU", "MaxPool2d"}


def test_a_list_without_brackets_says_both_ways_on(run: Run) -> None:
    code, _, err = run("extract", "model=tiny", "layers.include=conv1,fc")
    assert code == 2
    assert "use layers.include=[conv1,fc] for a list, or add -m to sweep over the values" in err


# ------------------------------------------------------------------ where an archive is


@pytest.mark.slow
def test_commands_take_the_folder_of_a_run(run: Run, tmp_path: Path) -> None:
    words = ("model=tiny", "dataset=synthetic", "dataset.samples=3", "device=cpu")
    assert run("extract", *words)[0] == 0
    place = tmp_path / "run"
    for command in ("info", "verify"):
        for word in (str(place), f"archive={place}", f"archive={place / 'archive'}"):
            code, out, err = run(command, word)
            assert code == 0, err
            assert str(place / "archive") in out
    assert run("compare", str(place), str(place / "archive"))[0] == 0
    assert run("pack", str(place), str(tmp_path / "all.h5"))[0] == 0
    assert run("reproduce", str(place), str(tmp_path / "again"))[0] == 0
    assert run("render", f"archive={place}", "renderers=pca", folder="drawn")[0] == 0
    with Archive.open(place) as archive:
        assert len(archive) == 3


# ------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize(
    ("samples", "rows"),
    [
        ("3", [3]),
        ("[3,-1]", [3, 6]),
        ("synthetic-00000[1-3]", [1, 2, 3]),
        ("'*-000005'", [5]),
        ("[5:,0]", [5, 6, 0]),
        ("[all,2]", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_samples_are_chosen_as_people_say_it(
    run: Run, tiny_archive: Path, tmp_path: Path, samples: str, rows: list[int]
) -> None:
    if "[1-3]" in samples:
        samples = f"'{samples}'"
    words = ("renderers=pca", f"archive={tiny_archive}", f"render.samples={samples}")
    code, _, err = run("render", *words)
    assert code == 0, err
    drawn = sorted((tmp_path / "run" / "pictures" / "pca").iterdir())
    assert [int(path.name[:6]) for path in drawn] == sorted(rows)


def test_ids_go_without_ending_or_folder() -> None:
    ids = ["cats/one.jpg", "dogs/one.jpg", "cats/two.jpg", "3"]
    for words, rows in (
        (["cats/one.jpg"], [0]), (["two"], [2]), (["two.jpg"], [2]), (["cats/two"], [2]),
        (["*/one.*"], [0, 1]), (["dogs/*"], [1]), (["3"], [3]), (["-1", "0"], [3, 0]),
    ):  # fmt: skip
        assert choose_rows(ids, words) == rows, words
    for word, text in (
        ("tow", "did you mean two"),
        ("7", "there are 4"),
        ("9:", "there are 4"),
        ("one", "short for cats/one.jpg, dogs/one.jpg"),
    ):
        with pytest.raises(ConfigError, match=text):
            choose_rows(ids, [word])


def test_layers_are_chosen_for_every_renderer(run: Run, tiny_archive: Path, tmp_path: Path) -> None:
    words = (f"archive={tiny_archive}", "render.layers=[conv1,'relu:*']", "render.samples=0",
             "renderers=[grid,mean_map,pca,overview,histogram,top_samples]")  # fmt: skip
    code, _, err = run("render", *words)
    assert code == 0, err
    expected = {"conv1", folder_name("relu:0"), folder_name("relu:1")}
    pictures = tmp_path / "run" / "pictures"
    assert {path.name for path in (pictures / "grid").iterdir()} == expected
    assert len(list((pictures / "histogram").glob("*.png"))) == 3
    pages = {path.stem for path in (tmp_path / "run" / "gallery" / "layers").iterdir()}
    assert pages == expected
    code, _, err = run("render", f"archive={tiny_archive}", "render.layers=[conv3]")
    assert code == 2
    assert "no layer 'conv3'; did you mean conv" in err
    with Archive.open(tiny_archive) as archive:
        part = archive.with_layers(["conv*"])
        assert list(part.layers) == ["conv1", "conv2"]
        assert [layer.name for layer in sample_view(part, part.samples[0]).layers] == [*part.layers]
        assert len(archive.layers) == 7


# ------------------------------------------------------------------ refused early


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("render.samples=[nosuch]", "render.samples: no sample 'nosuch'"),
        ("render.layers=[conv9]", "render.layers: no layer 'conv9'; did you mean conv"),
        ("renderers.grid.channels=[99]", "renderers.grid.channels: no channel 99"),
        ("archive=/proc/none", "/proc/none: writing failed"),
    ],
)
def test_what_cannot_be_drawn_or_kept_is_refused_before_anything_is_extracted(
    run: Run, tmp_path: Path, word: str, text: str
) -> None:
    words = ("model=tiny", "dataset=synthetic", "dataset.samples=3", "device=cpu")
    code, _, err = run("run", *words, word)
    assert code in (1, 2)
    assert text in err.splitlines()[-1]
    assert not any("extract:" in line for line in err.splitlines())
    assert not (tmp_path / "run" / "archive").exists()


# ------------------------------------------------------------------ advice that works


@pytest.mark.slow
def test_the_advice_after_a_bad_image_works(run: Run, photos: Path, tmp_path: Path) -> None:
    (photos / "cats" / "empty.png").write_bytes(b"")
    words = ("model=tiny", "dataset=image_folder", f"dataset.root={photos}", "device=cpu",
             "loader.batch_size=1", "storage.shard_samples=1")  # fmt: skip
    code, _, err = run("extract", *words)
    assert code == 1
    assert "set on_error=skip to leave such samples out" in err
    shards = tmp_path / "run" / "archive" / "shards"
    before = {path: path.stat().st_mtime_ns for path in shards.glob("0*.h5")}
    assert before
    code, _, err = run("extract", *words, "on_error=skip")
    assert code == 4, err
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    code, _, err = run("extract", *words)
    assert code == 2
    assert "leaves out 1 sample that could not be used; set on_error=skip" in err
    assert run("extract", *words, "on_error=skip")[0] == 4


# ------------------------------------------------------------------ what a run says and leaves


@pytest.mark.slow
def test_an_index_maps_pictures_to_what_they_show(run: Run, photos: Path, tmp_path: Path) -> None:
    words = ("model=tiny", "dataset=image_folder", f"dataset.root={photos}", "device=cpu")
    assert run("run", *words, "renderers=[grid,top_samples]", "dataset.limit=3")[0] == 0
    place = tmp_path / "run"
    with (place / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all((place / row["picture"]).is_file() for row in rows)
    assert {row["renderer"] for row in rows} == {"grid", "top_samples", "thumbnails"}
    grids = [row for row in rows if row["renderer"] == "grid"]
    with Archive.open(place) as archive:
        assert len(grids) == 3 * len(archive.layers)
        for row in grids:
            sample = archive.samples[int(row["row"])]
            assert (row["id"], row["label_name"]) == (sample.id, sample.label_name)
            assert row["layer"] in archive.layers
            assert Path(row["picture"]).stem == sample_stem(sample.index, sample.id)


@pytest.mark.slow
def test_layers_that_are_left_out_are_one_line(run: Run) -> None:
    words = ("model=timm", "model.name=vit_tiny_patch16_224", "model.weights=null", "layers=all")
    code, _, err = run("extract", *words, "dataset=synthetic", "dataset.samples=1", "device=cpu")
    assert code == 0, err
    lines = [line for line in err.splitlines() if "left out" in line]
    assert len(lines) <= 1, lines


@pytest.mark.slow
def test_images_a_second_of_a_sweep_leave_the_start_out(tmp_path: Path) -> None:
    words = ("model=tiny", "dataset=synthetic", "dataset.samples=4", "device=cpu", "seed=0,1")
    assert main(["extract", "-m", *words, f"hydra.sweep.dir={tmp_path}"]) == 0
    with (tmp_path / "catalogue.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            status = json.loads((tmp_path / row["job"] / "status.json").read_text())
            rate = status["written"] / status["extracting"]
            assert float(row["images_per_second"]) == pytest.approx(rate, rel=0.05)
            assert status["extracting"] < status["seconds"]


# ------------------------------------------------------------------ tokens


@pytest.mark.slow
def test_the_class_token_alone_and_beside_the_mean(run: Run, tmp_path: Path) -> None:
    words = (
        "model=timm", "model.name=vit_tiny_patch16_224", "model.weights=null", "device=cpu",
        "dataset=synthetic", "dataset.samples=2", "layers.include=[blocks.0,blocks.1]",
    )  # fmt: skip
    assert run("extract", *words, folder="whole")[0] == 0
    assert run("extract", *words, "reduction=cls_token", folder="cls")[0] == 0
    mixed = "reduction.layers={blocks.0: cls_token, blocks.1: spatial_mean}"
    assert run("extract", *words, "reduction=per_layer", mixed, folder="mixed")[0] == 0
    with (
        Archive.open(tmp_path / "whole") as whole,
        Archive.open(tmp_path / "cls") as cls,
        Archive.open(tmp_path / "mixed") as both,
    ):
        tokens = whole.layers["blocks.0"][:]
        assert tokens.shape == (2, 197, 192)
        np.testing.assert_array_equal(cls.layers["blocks.0"][:], tokens[:, 0])
        np.testing.assert_array_equal(both.layers["blocks.0"][:], tokens[:, 0])
        mean = whole.layers["blocks.1"][:][:, 1:].mean(axis=1)
        np.testing.assert_allclose(both.layers["blocks.1"][:], mean, rtol=1e-5, atol=1e-6)
        assert cls.layers["blocks.0"].axes == ("sample", "channel")
        assert cls.layers["blocks.0"].entry.positions == "class token"
        expected = tokens[:, 0].mean(axis=0)
        found = cls.layers["blocks.0"].statistics["mean"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    tiny = ("model=tiny", "dataset=synthetic", "device=cpu", "reduction=cls_token")
    code, _, err = run("extract", *tiny)
    assert code == 2
    assert "no class token is known for conv1; bn1; relu:0; and 2 more; set" in err
    words = [*words[:-1], "layers.include=[patch_embed.proj,blocks.1]", "reduction=cls_token"]
    code, _, err = run("extract", *words, folder="some")
    assert (code, "reduction: left out: no class token is known for patch_embed.proj" in err) == (
        0, True,
    )  # fmt: skip
    with Archive.open(tmp_path / "some") as some:
        assert list(some.layers) == ["blocks.1"]


# ------------------------------------------------------------------ samples by id


def test_samples_are_found_by_id(tiny_archive: Path) -> None:
    with Archive.open(tiny_archive) as archive:
        assert archive.samples["synthetic-000003"].index == 3
        assert archive.samples[-1].id == "synthetic-000006"
        assert [sample.index for sample in archive.samples[2:4]] == [2, 3]
        with pytest.raises(KeyError, match="did you mean synthetic-00000"):
            archive.samples["synthetic-00003"]


# ------------------------------------------------------------------ partial archives


@pytest.mark.slow
def test_what_is_finished_of_an_archive_is_drawn_and_marked(run: Run, tmp_path: Path) -> None:
    words = ("model=tiny", "dataset=synthetic", "dataset.samples=6", "device=cpu",
             "storage.shard_samples=2", "loader.batch_size=2")  # fmt: skip
    place, draw = tmp_path / "run" / "archive", ("renderers=[mean_map]", "render.samples=0:4")
    assert run("extract", *words)[0] == 0
    assert run("render", f"archive={place}", *draw, folder="whole")[0] == 0
    (place / "COMPLETE.json").unlink()
    (place / "archive.h5").unlink()
    (place / "shards" / "00002.h5").unlink()
    before = sorted(path.name for path in place.rglob("*"))
    code, _, err = run("render", f"archive={place}", *draw, folder="not")
    assert code == 1
    assert "set render.partial=true to render the finished shards" in err
    code, _, err = run("render", f"archive={place}", *draw, "render.partial=true", folder="part")
    assert code == 0, err
    assert sorted(path.name for path in place.rglob("*")) == before
    page = (tmp_path / "part" / "gallery" / "index.html").read_text()
    assert "tiny (partial: 4 of 6 samples)" in page
    assert len(list((tmp_path / "part" / "pictures" / "mean_map").iterdir())) == 4
    drawn = pipeline.render(place, tmp_path / "python", {"mean": pipeline.MeanMap()},
                            pipeline.RenderOptions(partial=True))  # fmt: skip
    assert [sample.index for sample in drawn.samples] == [0, 1, 2, 3]
    with (
        Archive.open_partial(place) as part,
        Archive.open(tiny_extraction_of(run, words, tmp_path)) as all_,
    ):
        for name in all_.layers:
            np.testing.assert_array_equal(part.layers[name][:], all_.layers[name][:4])
            expected = all_.layers[name][:4].astype(np.float64).mean(axis=0)
            expected = expected.reshape(len(expected), -1).mean(axis=1)
            np.testing.assert_allclose(part.layers[name].statistics["mean"], expected, rtol=1e-5)
    (place / "shards" / "00000.h5").unlink()
    (place / "shards" / "00001.h5").unlink()
    code, _, err = run("render", f"archive={place}", *draw, "render.partial=true", folder="none")
    assert code == 1
    assert "no shard is finished yet" in err


def tiny_extraction_of(run: Run, words: tuple[str, ...], folder: Path) -> Path:
    assert run("extract", *words, f"archive={folder / 'other'}")[0] == 0
    return folder / "other"


def test_a_layers_name_that_looks_like_a_glob_is_that_layer(run: Run, tmp_path: Path) -> None:
    words = ("model=tiny", "dataset=synthetic", "dataset.samples=1", "device=cpu",
             "layers.include=[conv1,conv2]", "layers.aliases={conv1: 'first[0]'}",
             "renderers=[pca]", "render.layers=['first[0]']")  # fmt: skip
    code, _, err = run("run", *words)
    assert code == 0, err
    assert {path.stem for path in (tmp_path / "run" / "gallery" / "layers").iterdir()} == {
        folder_name("first[0]")
    }
