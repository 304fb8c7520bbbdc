"""URLs are refused wherever a path is expected; none becomes a local folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Archive, SampleImages, TinyModel
from pipeline.extraction.settings import Extraction
from tests.conftest import Run

TINY = ("model=tiny", "dataset=synthetic")


def test_urls_are_no_folders(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases = [
        ("plan", *TINY, "archive=s3://b/x"), ("plan", *TINY, "hydra.run.dir=gs://b/x"),
        ("plan", *TINY, "model.weights=https://b/x.pt"), ("plan", "-cd", "s3://b/x", *TINY),
        ("plan", "model=tiny", "dataset=image_folder", "dataset.root=https://b/x"),
        ("plan", "model=tiny", "dataset=csv", "dataset.path=file:///b/x"),
        ("plan", "model=tiny", "dataset=webdataset", "dataset.shards=[a.tar,s3://b/{0..1}.tar]"),
        ("render", "archive=s3://b/x"),
        *((command, "s3://b/x") for command in ("info", "verify", "serve", "stitch", "similarity")),
        *((command, "archive=az://b/x") for command in ("info", "serve", "stitch")),
        *((command, *paths) for command in ("pack", "export", "compare", "reproduce")
          for paths in (("s3://b/x", "y"), ("y", "s3://b/x"))),
        ("similarity", "y", "--out", "s3://b/x"),
    ]  # fmt: skip
    for command, *words in cases:
        code, out, err = run(command, *words)
        assert (code, out, err.count("\n")) == (2, "", 1), (command, words, err)
        assert "URLs are not supported; copy or mount the data and give a local path" in err
    assert not list(tmp_path.iterdir())


def test_urls_are_refused_in_python() -> None:
    for refused in (
        lambda: Archive.open("s3://b/x"), lambda: Archive.open(Path("s3://b/x")),
        lambda: Extraction(model=TinyModel(), dataset=SampleImages(), archive="s3://b/x"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="URLs are not supported"):
            refused()
