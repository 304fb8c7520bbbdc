"""Advice in errors leads on: the remedy fits the state of the archive and what was given."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.cli import sweep
from pipeline.cli.job_names import name_jobs
from pipeline.cli.main import main
from pipeline.common.errors import ArchiveError, WeightsError
from pipeline.common.network import no_network
from pipeline.models.timm import TimmModel
from pipeline.models.transformers import TransformersModel


def test_stitch_is_the_remedy_where_every_shard_is_there(
    tiny_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "my archive"
    shutil.copytree(tiny_archive, path)
    for name in ("archive.h5", "COMPLETE.json"):
        (path / name).unlink()
        with pytest.raises(ArchiveError, match=r"featuremaps stitch '.*my archive'"):
            Archive.open(path)
        assert main(["stitch", f"archive={path}"]) == 0
        with Archive.open(path) as archive:
            assert len(archive) == 7
    (path / "COMPLETE.json").unlink()
    next((path / "shards").glob("*.h5")).unlink()
    with pytest.raises(ArchiveError, match="run the same extraction again"):
        Archive.open(path)


def test_jobs_that_never_started_count(tmp_path: Path) -> None:
    (tmp_path / "seed=0" / ".hydra").mkdir(parents=True)
    (tmp_path / "seed=0" / "status.json").write_text('{"state": "done", "overrides": "seed=0"}')
    (tmp_path / "seed=1" / ".hydra").mkdir(parents=True)
    names = name_jobs([[f"seed={i}"] for i in range(6)], {})
    said = sweep.summarize(tmp_path, names)
    assert "(1 of 6 jobs done)" in said
    with (tmp_path / "catalogue.csv").open(newline="", encoding="utf-8") as file:
        states = {row["job"]: row["state"] for row in csv.DictReader(file)}
    expected = ["done", "died", *["not started"] * 4]
    assert states == {f"seed={i}": state for i, state in enumerate(expected)}
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("not started") == 4


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (TransformersModel(name="nobody/nothing", weights=None), "model.name=FOLDER"),
        (TransformersModel(name="nobody/nothing"), "model.name=FOLDER"),
        (TimmModel(name="hf-hub:nobody/nothing", weights=None), "model.name=local-dir:FOLDER"),
    ],
)
def test_offline_advice_is_not_what_was_given(
    model: TransformersModel | TimmModel, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with no_network(), pytest.raises(WeightsError) as refused:
        model.load()
    text = str(refused.value)
    assert remedy in text
    assert "model.weights=null" not in text
    assert "model=tf_efficientnet_lite0" in text
