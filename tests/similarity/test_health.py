"""Health of layers: figures from the stored statistics equal NumPy over the activations."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.cli.main import main
from pipeline.common.errors import ConfigError, LayerError
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage
from pipeline.models.checkpoint import CheckpointModel
from pipeline.similarity.health import health
from scripts.synthetic_archive import layer_of, write_archive
from tests.conftest import Run, tiny_extraction
from tests.helpers.chromium import Watch, needs_chromium
from tests.helpers.random_archives import random

MODEL = """
from collections import OrderedDict

import torch
from torch import nn

class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

def sick(scale=1.0, dying=2):
    def die(x):
        x = x.relu().clone()
        x[:, :dying] = 0
        return x

    def break_down(x):
        x = x.clone()
        x[:, 0, 0, 0], x[:, 1], x[0, 2] = torch.nan, torch.inf, -torch.inf
        return x

    return nn.Sequential(OrderedDict(
        live=nn.Conv2d(3, 4, 3),
        scaled=Apply(lambda x: x * scale),
        dying=Apply(die),
        partly=Apply(lambda x: torch.where(torch.arange(4)[:, None, None] < 3, 0.5, x)),
        exploding=Apply(lambda x: x * 4e37),
        constant=Apply(lambda x: x * 0 + 7),
        broken=Apply(break_down),
        lost=Apply(lambda x: x * torch.nan),
        dead=Apply(torch.zeros_like),
    ))
"""


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two archives of a model with layers of every kind."""
    folder = tmp_path_factory.mktemp("sick")
    (folder / "sick_model.py").write_text(MODEL, encoding="utf-8")
    for name, arguments in (("epoch2", {}), ("epoch10", {"scale": -3.0, "dying": 4})):
        model = CheckpointModel(
            class_path=f"{folder}/sick_model.py:sick", weights=None, arguments=arguments
        )
        extract(
            tiny_extraction(
                folder / "archives" / name,
                model=model,
                layers=LayerSelector(include=("*",)),
                storage=Storage(shard_samples=4),
            )
        )
    return folder


def test_figures_equal_numpys(sick: Path) -> None:
    found = health([sick])
    assert found.archives == ["epoch2", "epoch10"]
    assert len(found.cells) == 2 * 9
    first: dict[str, np.ndarray] = {}
    for name in found.archives:
        with Archive.open(sick / "archives" / name) as archive:
            for layer, stored in archive.layers.items():
                values = stored[:].astype(np.float64)
                finite = values[np.isfinite(values)]
                cell = found.cells[name, layer]
                channels = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
                same = (channels == channels[:, :1]).all(axis=1)
                dead = (channels == 0).all(axis=1)
                assert (cell.channels, cell.dead) == (len(channels), dead.sum()), (name, layer)
                assert cell.constant == (same & ~dead).sum() - int(layer == "broken")  # infinite
                assert cell.nonfinite == (~np.isfinite(values)).sum()
                first.setdefault(layer, finite)
                expected = {
                    "zero_fraction": (values == 0).mean(),
                    "mean": finite.mean() if finite.size else np.nan,
                    "std": finite.std() if finite.size else np.nan,
                    "largest": np.abs(finite).max(initial=-np.inf) if finite.size else np.nan,
                }
                for figure, value in expected.items():
                    np.testing.assert_allclose(getattr(cell, figure), value, rtol=2e-6, atol=1e-12,
                                               err_msg=f"{name} {layer} {figure}")  # fmt: skip
                old = first[layer]
                for figure, of in (("mean_drift", np.mean), ("std_drift", np.std)):
                    reference = of(old) if old.size else 0
                    change = np.nan
                    if finite.size and abs(reference) > 1e-12:
                        change = (of(finite) - reference) / abs(reference)
                    np.testing.assert_allclose(getattr(cell, figure), change, rtol=1e-4, atol=1e-6,
                                               err_msg=f"{name} {layer} {figure}")  # fmt: skip
    assert found.cells["epoch2", "dying"].fault == "2 of 4 channels dead"
    assert found.cells["epoch2", "exploding"].largest > 1e37
    assert found.cells["epoch2", "exploding"].fault.endswith("e+37, is beyond float16")
    faults = {layer: found.cells["epoch10", layer].fault for layer in found.layers}
    assert faults["live"] == faults["scaled"] == ""
    assert faults["dying"] == faults["dead"] == "every channel is dead"
    assert faults["constant"] == "every channel is constant"
    assert "values not finite" in faults["broken"]


def test_the_command_writes_csv_json_figure_and_page(sick: Path, run: Run) -> None:
    code, out, err = run("health", str(sick))
    assert code == 0, err
    assert f"health: {sick}/health/index.html" in out
    assert "×" not in out.splitlines()[0]
    with (sick / "health" / "health.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["archive"], row["layer"]): row for row in csv.DictReader(file)}
    assert next(iter(rows)) == ("epoch2", "live")
    assert rows["epoch2", "lost"]["mean"] == ""  # nothing is finite
    assert rows["epoch10", "constant"]["mean_drift"] == "0.0"
    assert rows["epoch10", "constant"]["std_drift"] == ""  # against a spread of zero
    code, out, _ = run("health", str(sick), "--layers", "l*", "--json", "--out", str(sick / "j"))
    known = json.loads(out)
    assert [row["layer"] for row in known["layers"]] == ["live", "lost"] * 2
    assert known["layers"][1]["std"] is None
    with Image.open(sick / "health" / "health.png") as picture:
        assert np.asarray(picture).std() > 10
    assert run("health", str(sick), "--out", str(sick / "archives"))[0] == 2


def test_an_incomplete_archive_and_wrong_words(
    sick: Path, tiny_archive: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(sick / "archives", tmp_path / "archives")
    (tmp_path / "archives" / "epoch2" / "COMPLETE.json").unlink()
    found = health([tmp_path, tiny_archive])
    assert found.archives[0] == "epoch10"
    assert found.notes[0] == f"{tmp_path}: incomplete archives left out: 1 of 2"
    assert list(found.layers)[-1] == "fc"
    assert np.isnan(found.matrix("mean")[0, 1])  # the other model has no such layer
    with pytest.raises(ConfigError, match="is given twice"):
        health([tiny_archive, tiny_archive.parent])
    with pytest.raises(LayerError, match="no layer 'liev'; did you mean live"):
        health([sick], layers=["liev"])
    assert main(("health", str(tmp_path / "nothing"))) == 1


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_shows_figures_and_faults(sick: Path, browser: Browser, width: int) -> None:
    from pipeline.similarity.health_page import write_health

    index = write_health(health([sick]), sick / "health")
    page = browser.new_page(viewport={"width": width, "height": 800})
    watch = Watch(page, "file://")
    page.goto(index.as_uri())
    expect(page.locator("h1")).to_contain_text("Health of 9 layers")
    expect(page.locator("#faults tbody tr")).to_have_count(13)
    expect(page.locator("#largest")).to_contain_text("e+3")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not watch.complaints
    page.close()


def test_prefix_tokens_that_are_not_finite_change_no_share_of_zeros(tmp_path: Path) -> None:
    tokens = random(6, 5, 3)
    tokens[:, 1:, 0], tokens[:, 2, 1], tokens[2, 0] = 0, 0, np.nan
    layer = layer_of(tokens, prefix_tokens=1, grid=(2, 2))
    path = write_archive(tmp_path / "a", {"x": layer}, list("abcdef"), skipped=["f"], shards=2)
    with Archive.open(path) as archive:
        figures = archive.layers["x"].statistics
    np.testing.assert_array_equal(figures["zero_fraction"], [1, 0.25, 0])
    np.testing.assert_array_equal(figures["nonfinite_count"], [1, 1, 1])
    (cell,) = health(path).cells.values()
    assert (cell.dead, cell.nonfinite) == (1, 3)
    assert cell.zero_fraction == pytest.approx(1.25 / 3)
