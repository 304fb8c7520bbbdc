"""URLs are archives in object stores; elsewhere they are refused. None becomes a local folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Archive, SampleImages, TinyModel
from pipeline.common import places
from pipeline.extraction.settings import Extraction
from tests.conftest import Run

TINY = ("model=tiny", "dataset=synthetic")


def test_urls_are_no_folders(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases = [
        ("plan", *TINY, "archive=ftp://b/x"), ("plan", *TINY, "hydra.run.dir=gs://b/x"),
        ("plan", *TINY, "model.weights=https://b/x.pt"), ("plan", "-cd", "s3://b/x", *TINY),
        ("plan", "model=tiny", "dataset=image_folder", "dataset.root=https://b/x"),
        ("plan", "model=tiny", "dataset=csv", "dataset.path=file:///b/x"),
        ("plan", "model=tiny", "dataset=webdataset", "dataset.shards=[a.tar,s3://b/{0..1}.tar]"),
        ("render", "archive=file:///b/x"),
        *((command, "hf://b/x") for command in ("info", "verify", "serve", "stitch", "similarity")),
        *((command, "archive=ftp://b/x") for command in ("info", "serve", "stitch")),
        *((command, "y", "s3://b/x") for command in ("pack", "export", "reproduce")),
        *((command, "ftp://b/x", "y") for command in ("pack", "export", "compare", "reproduce")),
        ("similarity", "y", "--out", "s3://b/x"),
    ]  # fmt: skip
    for command, *words in cases:
        code, out, err = run(command, *words)
        assert (code, out, err.count("\n")) == (2, "", 1), (command, words, err)
        assert "URLs are not supported; copy or mount the data and give a local path" in err
    assert not list(tmp_path.iterdir())


def test_urls_are_refused_in_python() -> None:
    for refused in (
        lambda: Archive.open("ftp://b/x"), lambda: Archive.open(Path("ftp://b/x")),
        lambda: Extraction(model=TinyModel(), dataset=SampleImages(), archive="ftp://b/x"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="URLs are not supported"):
            refused()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "give a URL like s3://bucket/prefix"),
        ("s3://key:secret@b/x", "without user, password"),
        ("https://b/x?sig=secret", "without user, password"),
        ("s3://b/../x", "remove the .. from the URL"),
    ],
)
def test_wrong_urls_of_archives(run: Run, url: str, message: str) -> None:
    code, out, err = run("info", url)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert "secret" not in err


def test_without_obstore_urls_name_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(places, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    for words in (("info", "s3://b/x"), ("extract", *TINY, "archive=gs://b/x")):
        code, _, err = run(*words)
        assert code == 2
        assert "URLs need obstore; run: pip install 'featuremaps[remote]'" in err
    assert not (tmp_path / "gs:").exists()


def test_credentials_do_not_go_into_configurations(run: Run) -> None:
    for word in ("storage_options.aws_secret_access_key=abc", "storage_options={aws_token: abc}"):
        for more in ((), ("--cfg", "job")):
            code, out, err = run("extract", *TINY, "archive=s3://b/x", word, *more)
            assert (code, "abc" in out + err) == (2, False)
            assert "must not be in a configuration, which is written to files; set AWS_" in err
