"""What people type first about layers works, or is answered by the line to type next."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.archive.reader import Archive
from pipeline.extraction.extract import extract
from pipeline.layers.selector import LayerSelector
from pipeline.models.tiny import TinyModel
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
        ("last", ["fc"]),
        ("penultimate", ["fc:in"]),
        ("[-2,-1]", ["avgpool", "fc"]),
        ("[-3]", ["layer4.1.relu:1"]),
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
    assert "write layers.include=[conv1,fc], or -m to sweep over them" in err
