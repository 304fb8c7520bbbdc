"""URLs are archives in object stores; elsewhere they are refused. None becomes a local folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Archive, SampleImages, TinyModel
from pipeline.common import places
from pipeline.common.errors import ConfigError
from pipeline.common.object_path import ObjectPath
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


def test_the_home_of_an_unknown_user_is_a_mistake_of_the_user(run: Run) -> None:
    cases = [
        ("plan", *TINY, "archive=~nobody9/x"), ("plan", *TINY, "model.weights=~nobody9/x.pt"),
        ("plan", "model=tiny", "dataset=image_folder", "dataset.root=~nobody9/x"),
        ("plan", "model=tiny", "dataset=csv", "dataset.path=~nobody9/x"),
        ("plan", "model=tiny", "dataset=webdataset", "dataset.shards=[~nobody9/x.tar]"),
        ("plan", "model=~nobody9/x", TINY[1]), ("render", "archive=~nobody9/x"),
        ("info", "~nobody9/x"), ("export", "x", "~nobody9/x"),
        ("compare", "x", "archive=~nobody9/x"),
        ("reproduce", "~nobody9/x"),
    ]  # fmt: skip
    for command, *words in cases:
        code, out, err = run(command, *words)
        assert (code, out, err.count("\n")) == (2, "", 1), (command, words, err)
        assert "there is no user 'nobody9'; write the whole path, from /" in err
    with pytest.raises(ValueError, match="no user 'nobody9'"):
        Archive.open("~nobody9/x")


@pytest.mark.parametrize(("key", "seed"), [("seed", 2**63), ("dataset.seed", -1)])
def test_seeds_out_of_range(run: Run, key: str, seed: int) -> None:
    code, _, err = run("plan", *TINY, f"{key}={seed}")
    assert (code, err.startswith(f"featuremaps: error: {key}: must be ")) == (2, True), err


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
    words = ("storage_options.aws_secret_access_key=abc", "storage_options={aws_token: abc}",
             "storage_options={azure_storage_sas_key: abc}",
             "storage_options={proxy_url: 'http://me:abc@proxy'}")  # fmt: skip
    for word in words:
        for command in (("extract", *TINY), ("render",)):
            for more in ((), ("--cfg", "job")):
                code, out, err = run(*command, "archive=s3://b/x", word, *more)
                assert (code, out, err.count("\n"), "abc" in err) == (2, "", 1, False)
                assert "must not be in a configuration or a command line" in err
    for command in ("info", "serve", "similarity"):
        word = "aws_secret_access_key=abc"
        code, out, err = run(command, "s3://b/x", "--storage-option", word)
        assert (code, out, err.count("\n"), "abc" in err) == (2, "", 1, False)
        assert "set AWS_SECRET_ACCESS_KEY in the environment" in err


def test_options_of_a_store(run: Run) -> None:
    options = {"AWS_REGION": "eu-1", "azure_use_emulator": "true", "timeout": "3s"}
    assert vars(places.place("s3://b/x", storage_options=options))["options"] == {
        "aws_region": "eu-1", "timeout": "3s"
    }  # fmt: skip
    assert vars(places.place("https://b/x", storage_options=options))["options"] == {
        "timeout": "3s"
    }
    for word, message in (("aws_region", "expected KEY=VALUE"), ("=x", "expected KEY=VALUE")):
        code, _, err = run("info", "s3://b/x", "--storage-option", word)
        assert (code, message in err) == (2, True)


@pytest.mark.parametrize("value", ["", "localhost:9000", "http://", "http://a b", "http://h:99999"])
@pytest.mark.parametrize(
    ("url", "name"), [("s3://b/x", "AWS_ENDPOINT_URL_S3"), ("az://b/x", "AZURE_STORAGE_ENDPOINT")]
)
def test_an_endpoint_that_is_no_address_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    code, _, err = run("info", url)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{name}: not the address of a server" in err


@pytest.mark.parametrize(
    ("url", "root", "key"),
    [
        ("gs://bucket/a/b", "gs://bucket", "a/b"),
        ("GS://bucket//a/./b/", "gs://bucket", "a/b"),
        ("az://container/run 1", "az://container", "run 1"),
        ("az://container", "az://container", ""),
        ("s3://bucket/50%25", "s3://bucket", "50%25"),
        ("https://host:8080/50%25/x", "https://host:8080", "50%/x"),
    ],
)
def test_urls_are_parsed(url: str, root: str, key: str) -> None:
    for given in (url, Path(url)):  # Path merges two slashes
        path = places.place(given)
        assert isinstance(path, ObjectPath)
        assert (path.root, path.key) == (root, key)
        assert path / "shards" / "00000.h5" == ObjectPath(
            root, f"{key}/shards/00000.h5".lstrip("/")
        )


def test_options_of_a_store_are_refused_for_local_paths(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    for name, words in {
        "storage_options": ("extract", *TINY, f"archive={path}", "storage_options.aws_region=x"),
        "--storage-option": ("compare", str(path), str(path), "--storage-option", "aws_region=x"),
    }.items():
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{name}: has no effect on " in err
    assert not path.exists()
    with pytest.raises(ConfigError, match=r"^storage_options: has no effect on the local path"):
        Archive.open(path, storage_options={"aws_region": "x"})
