"""`featuremaps reproduce`: the recorded configuration again, nothing that an archive smuggles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.datasets.sequence import FromSequence
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.models.tiny import TinyModel
from tests.conftest import Run, photo, tiny_extraction
from tests.helpers.edited_archives import edited
from tests.helpers.stored_arrays import assert_same_arrays


def test_the_same_values_come_out_again(tiny_archive: Path, tmp_path: Path, run: Run) -> None:
    code, out, err = run("reproduce", str(tiny_archive), str(tmp_path / "again"))
    assert code == 0, err
    assert "model: tiny" in out
    assert "made by:" in out
    assert "equal within the tolerance" in out
    assert "changed since" not in out
    assert_same_arrays(tiny_archive, tmp_path / "again")


def test_a_complete_archive_is_not_compared_as_if_it_were_made_again(
    tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "link").symlink_to(tiny_archive)
    for out in (tiny_archive, tmp_path / "link"):
        code, _, err = run("reproduce", str(tiny_archive), str(out))
        assert (code, err) == (
            2, f"featuremaps: error: {out}: is a complete archive already; give a new folder, or "
            f"run: featuremaps compare {tiny_archive} {out}\n",
        )  # fmt: skip


def test_choices_that_were_automatic_stay_what_they_were(tmp_path: Path, run: Run) -> None:
    extract(tiny_extraction(tmp_path / "a", loader=Loader(), channels_last=True))
    path = tmp_path / "a" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["config"]["loader"]["batch_size"] is None
    code, _, err = run("reproduce", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 0, err
    again = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert again["config"]["loader"]["batch_size"] == manifest["identity"]["batch_size"]
    assert again["identity"] == manifest["identity"]


@pytest.mark.slow
def test_weights_that_changed_are_named(tmp_path: Path, run: Run) -> None:
    weights = tmp_path / "w.pth"
    state = TinyModel().load().module.state_dict()
    torch.save(state, weights)
    extract(tiny_extraction(tmp_path / "a", model=TinyModel(weights=str(weights))))
    state["conv1.weight"] *= 2
    torch.save(state, weights)
    code, out, _ = run("reproduce", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 1
    assert "changed since: model.weights_sha256" in out
    assert "NOT equal" in out
    torch.save({**state, "conv1.weight": state["conv1.weight"] * (1 + 1e-6) / 2}, weights)
    code, out, _ = run(
        "reproduce", str(tmp_path / "a"), str(tmp_path / "c"), "--rtol", "1e-3", "--atol", "1e-3"
    )
    assert code == 0, out


def test_a_dry_run_shows_and_writes_nothing(tiny_archive: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("reproduce", str(tiny_archive), str(tmp_path / "again"), "--dry-run")
    assert code == 0
    assert "dataset: synthetic" in out
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"_target_": "os.system", "command": "touch HACKED"}}, "os.system is not a"),
        ({"dataset": {"_target_": "pathlib.Path"}}, "dataset._target_: pathlib.Path is not a"),
        ({"reduction": {"_target_": "tiny"}}, "is not a class of feature"),
        ({"model": "tiny"}, "model._target_: nothing is not a class"),
        (
            {"model": {"_target_": "checkpoint",
                       "class_path": "os.system", "weights": None}},
            "imports the Python class that it names; use --allow-code if you trust",
        ),
        ({"model": {"_target_": "hub"}}, "use --allow-code"),
        ({"loader": None}, "the archive's manifest lacks"),
        ({"seed": {"_target_": "os.system"}}, "seed"),
        ({"surprise": 1}, "surprise: no such key"),
    ],
)  # fmt: skip
def test_what_an_archive_smuggles_is_refused(
    tiny_archive: Path, tmp_path: Path, run: Run, changes: dict[str, Any], text: str
) -> None:
    archive = edited(tiny_archive, tmp_path / "a", **changes)
    code, _, err = run("reproduce", str(archive), str(tmp_path / "b"), "--dry-run")
    assert code == 2, err
    assert text in err
    assert "Traceback" not in err
    assert not (tmp_path / "b").exists()


def test_archives_of_a_program_are_left_to_it(tmp_path: Path, run: Run) -> None:
    from PIL import Image

    items = [Image.fromarray(photo(i)) for i in range(2)]
    extract(tiny_extraction(tmp_path / "a", dataset=FromSequence(items=items)))
    code, _, err = run("reproduce", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 2
    assert err.count("\n") == 1
    assert "dataset.items: was passed by a program" in err
