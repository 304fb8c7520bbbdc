"""`featuremaps similarity`: what it writes, where, and its page in a real browser."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from playwright.sync_api import Browser

from pipeline import similarity
from pipeline.cli.main import main
from pipeline.gallery import result_folder
from pipeline.similarity import similarity_page
from pipeline.similarity.measure_names import Measure
from pipeline.similarity.similarity_figures import heatmap, label_curves, subject
from scripts.synthetic_archive import layer_of, write_archive
from tests.conftest import Run
from tests.helpers.chromium import Watch, needs_chromium
from tests.helpers.random_archives import archive_of, correlated
from tests.helpers.sweeping import DRAW, SMALL, sweep

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    labels = [i % 3 for i in range(30)]
    found = []
    for number, name in enumerate(("one", "two")):
        arrays = correlated(30, (4, 6, 9), seed=number)
        arrays[HOSTILE] = arrays.pop("l2")
        found.append(archive_of(folder / name / "archive", arrays, 3, labels=labels, model=name))
    return found


def test_it_writes_table_figures_and_page(
    two: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("--measures", "cka,rsa,procrustes", "--bootstrap", "20", "--out", str(out))
    assert main(("similarity", *map(str, two), *words)) == 0
    said = capfd.readouterr().out
    assert f"compared:   6 layers over 30 samples\nsimilarity: {out}/index.html\n" in said
    assert said.startswith("cka    ")
    assert "\ntwo: l0  " in said  # an archive beside each name
    found = similarity(two, measures=("cka", "rsa", "procrustes"), bootstrap=20)
    with (out / "similarity.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 36
    assert list(rows[0]) == [
        "archive_a", "layer_a", "archive_b", "layer_b", "measure", "over", "value", "low", "high",
        "trimmed", "samples",
    ]  # fmt: skip
    for row, expected in zip(rows, found.table(), strict=True):
        for key, value in expected.items():
            if isinstance(value, float):
                assert float(row[key] or "nan") == pytest.approx(value, nan_ok=True)
            else:
                assert row[key] == str(value)
    for name in ("cka", "rsa", "procrustes", "labels"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        svg = (out / f"{name}.svg").read_text(encoding="utf-8")
        assert "<text" in svg
    assert ">l0<" in (out / "cka.svg").read_text(encoding="utf-8")
    content = json.loads((out / "similarity.json").read_text(encoding="utf-8"))
    assert content["measures"]["cka"]["value"] == found.matrix("cka").tolist()
    assert main(("similarity", *map(str, two), *words[2:], "--json")) == 0  # cka alone
    assert json.loads(capfd.readouterr().out)["labels"] == content["labels"]


@pytest.mark.slow
@needs_chromium
def test_its_page_is_quiet_and_cells_lead_to_pairs(
    two: list[Path], tmp_path: Path, browser: Browser
) -> None:
    page_file = similarity_page.write_similarity(similarity(two, bootstrap=5), tmp_path / "out")
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        watch = Watch(page, "file://")
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cell = page.locator("svg.heatmap a").nth(1)  # first row, second column
        cell.hover()
        title = cell.locator("title").text_content() or ""
        assert title.startswith("one: l0 – one: l1: ")
        assert page.locator("output.pair").text_content() == title
        cell.click()
        assert page.url.endswith("#pair-1-0")
        row = page.locator("tr:target")
        assert (row.locator("th").text_content() or "").strip() == "one: l0 – one: l1"
        assert row.locator("td").first.text_content() in title
        assert page.locator("script:not([src])").count() == 0
        assert not watch.complaints
        page.close()


@pytest.mark.slow
def test_curves_of_labels_are_told_apart_beside_their_legend(tmp_path: Path) -> None:
    arrays, labels = correlated(30, (4, 6, 9)), [i % 3 for i in range(30)]
    zero = {**arrays, "l1": np.zeros((30, 6), np.float32)}
    found = similarity([
        archive_of(tmp_path / name, each, labels=labels)
        for name, each in (("first", arrays), ("second", arrays), ("third", zero))
    ], bootstrap=5)  # fmt: skip
    figure = label_curves(found)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    for axes in figure.axes:
        assert not box.overlaps(axes.get_tightbbox())  # type: ignore[arg-type]
    assert box.x1 <= figure.bbox.x1
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["first", "second (= first)", "third", "most frequent label"]
    lines = figure.axes[0].lines[:3]
    for style in ("get_linestyle", "get_marker", "get_color"):
        assert len({str(getattr(line, style)()) for line in lines}) == 3 - (
            style == "get_linestyle"  # matplotlib calls all patterns "--"
        )
    assert len({line.get_linewidth() for line in lines}) == 3
    assert "gaps: undefined" in figure.get_suptitle()
    assert "third: l1" in found.notes[0]
    page = similarity_page.write_similarity(found, tmp_path / "out").read_text(encoding="utf-8")
    assert "memory" not in page
    assert "grey is undefined" in page
    with (tmp_path / "out" / "labels.csv").open(newline="", encoding="utf-8") as file:
        row = list(csv.DictReader(file))[7]
    assert (row["layer"], row["accuracy"], row["cka"], row["low"]) == ("l1", "", "", "")
    content = json.loads((tmp_path / "out" / "similarity.json").read_text(encoding="utf-8"))
    assert content["labels"][7]["accuracy"] is None
    assert content["measures"]["cka"]["trimmed"][7][7] is None


@pytest.mark.parametrize(
    ("entries", "over", "said"),
    [
        ([{"positions": "class token", "reduction": "ClsToken()"}], "mean", "class tokens"),
        ([{"positions": "class token"}, {}], "flatten", "class tokens, vectors"),
        ([{"reduction": "SpatialMean()"}], "mean", "means over positions"),
        ([{"reduction": "SpatialMax()"}], "mean", "maxima over positions"),
    ],
)
def test_titles_say_what_was_compared(
    entries: list[dict[str, str]], over: str, said: str, tmp_path: Path
) -> None:
    layers = {f"l{i}": layer_of(correlated(8, (3,))["l0"], **more)
              for i, more in enumerate(entries)}  # fmt: skip
    path = write_archive(tmp_path / "a", layers, list("abcdefgh"))
    found = similarity(path, over=over, bootstrap=0)
    assert subject(found) == f"synthetic · 8 samples · {said}"


@pytest.mark.slow
def test_layers_lead_to_their_pages_in_the_gallery(run: Run, tmp_path: Path) -> None:
    words = ("model=tiny", "layers.include=[conv1,conv2]", *SMALL, *DRAW, "dataset.samples=6")
    assert run("run", *words)[0] == 0
    code, out, _ = run("similarity", str(tmp_path / "run"), "--bootstrap", "0")
    assert code == 0
    assert "note:       only 6 samples" in out
    page = tmp_path / "run" / "similarity" / "index.html"
    assert f"similarity: {page}\n" in out
    for layer in ("conv1", "conv2"):
        link = f"../gallery/layers/{layer}.html"
        assert f'href="{link}"' in page.read_text(encoding="utf-8")
        assert (page.parent / link).is_file()


@pytest.mark.slow
def test_a_sweep_ends_with_a_page_over_all_its_archives(tmp_path: Path) -> None:
    words = ("model=tiny", "layers.include=[conv1,conv2]", *SMALL, *DRAW, "dataset.samples=6")
    done = sweep(tmp_path / "s", *words, "seed=1,2", "sweep.similarity=[cka]")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "s" / "similarity" / "index.html"
    assert f"similarity: {page}\n" in done.stdout
    text = page.read_text(encoding="utf-8")
    assert "Similarity of 4 layers" in text
    assert text.count("gallery/layers/conv1.html") > 2
    catalogue = tmp_path / "s" / "index.html"
    assert 'href="similarity/index.html"' in catalogue.read_text(encoding="utf-8")
    shutil.rmtree(page.parent)
    catalogue.write_text("old")
    assert main(("similarity", str(tmp_path / "s"), "--bootstrap", "0")) == 0
    assert page.is_file()
    assert 'href="similarity/index.html"' in catalogue.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_sweeps_measures_are_refused_before_it_extracts(tmp_path: Path, run: Run) -> None:
    code, _, err = run("extract", *SMALL, "model=tiny", "sweep.similarity=[cka]")
    assert code == 2
    assert (
        "sweep.similarity: needs a sweep (-m); for one archive use: featuremaps similarity" in err
    )
    done = sweep(tmp_path / "s", *SMALL, "model=tiny", "seed=1,2", "sweep.similarity=[ckaa]")
    assert done.returncode == 2
    assert "unknown value 'ckaa'; did you mean cka?" in done.stderr
    assert not (tmp_path / "s" / "archives").exists()


@pytest.mark.slow
def test_results_appear_at_once_or_not_at_all(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    words = ("similarity", str(two[0]), "--bootstrap", "0", "--out", str(out))
    assert main(words) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def fails(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(result_folder, "encode_plot", fails)
    assert main((*words, "--measures", "rsa")) == 130
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    assert main((*words, "--measures", "rsa")) == 0
    assert not (out / "cka.png").exists()
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("all of it")
    capfd.readouterr()
    assert main((*words[:-1], str(other))) == 2
    assert "the folder exists and holds other files; use a new folder" in capfd.readouterr().err
    assert (other / "thesis.txt").read_text() == "all of it"


@pytest.mark.slow
def test_sixty_layers_have_legible_names(tmp_path: Path) -> None:
    arrays = {f"layer{i // 15}.{i % 15}.conv{i % 3}": v for i, v in enumerate(
        correlated(24, (3,) * 60).values())}  # fmt: skip
    found = similarity(archive_of(tmp_path / "a", arrays), bootstrap=0)
    figure = heatmap(found, "cka")
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == 60
    heights = np.array([box.height for box in boxes])
    assert (heights / figure.dpi * 72 >= 5).all()  # points
    tops = sorted(box.y0 for box in boxes)
    assert (np.diff(tops) >= 0.7 * heights[0]).all()
    assert all(box.x0 >= 0 for box in boxes)  # none is cut off


@pytest.mark.parametrize("measure", get_args(Measure))
def test_few_layers_leave_no_text_cut_off_and_no_name_a_formula(
    tmp_path: Path, measure: Measure
) -> None:
    arrays = dict(zip(("$a_1$", "b\nc"), correlated(24, (3, 3)).values(), strict=True))
    archive = archive_of(tmp_path / "a", arrays)
    figure = heatmap(similarity(archive, measures=[measure], bootstrap=0), measure)
    FigureCanvasAgg(figure).draw()
    texts = [*figure.texts, *figure.axes[0].get_yticklabels()]
    boxes = [text.get_window_extent() for text in texts]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [r"\$a_1\$", "b c"]
