"""The cache of objects on disk: what it saves, and that it never changes what is read."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pytest
from torch.utils.data import DataLoader

from pipeline.archive.format import object_bytes
from pipeline.archive.reading.archive import Archive
from pipeline.common import disk_cache
from pipeline.common.disk_cache import DiskCache
from pipeline.common.errors import ArchiveError, ConfigError, DiskFullError
from pipeline.common.places import place
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.training.activation_dataset import ActivationDataset
from pipeline.training.activation_loader import ActivationLoader
from tests.conftest import Run, tiny_extraction
from tests.helpers.object_store import BUCKET, URL, ObjectStore


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the cache, which does not exist yet."""
    monkeypatch.setenv("FEATUREMAPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "featuremaps-objects"


def epoch(loader: ActivationLoader) -> np.ndarray:
    return np.concatenate([batch.activations["conv1"].numpy() for batch in loader])


@pytest.fixture
def expected(tiny_archive: Path) -> list[np.ndarray]:
    """Return three epochs of the local archive."""
    local = ActivationLoader(tiny_archive, "conv1", 3)
    return [epoch(local) for _ in range(3)]


@pytest.mark.parametrize("block", [1000, pytest.param(object_bytes._BLOCK, marks=pytest.mark.slow)])
def test_later_epochs_make_no_request(
    remote: ObjectStore, folder: Path, expected: list[np.ndarray], block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(object_bytes, "_BLOCK", block)
    loader = ActivationLoader(URL, "conv1", 3, cache="rows")
    np.testing.assert_array_equal(epoch(loader), expected[0])
    rows = 4 * 16 * 16 * 4
    received = sum(each.sent for each in remote.requests if "shards" in each.path)
    if block == 1000:  # the ends of three shards, and each row once
        assert received < 7 * rows + 6 * block + 3 * object_bytes.TAIL
    remote.clear()
    for number in (1, 2):
        np.testing.assert_array_equal(epoch(loader), expected[number])
    assert remote.requests == []
    again = ActivationLoader(URL, ["conv1"], 2, cache="rows", shuffle="full")  # another run
    assert len(epoch(again)) == 7
    names = [request.path.rpartition("/")[2] for request in remote.requests]
    assert names == ["manifest.json", "COMPLETE.json"]
    remote.clear()
    with Archive.open(URL) as archive:  # the rows of conv1 only are there, and not asked for
        archive.layers["conv1"][:]
        assert [archive.samples[0].id, *archive.filters]
    assert len(remote.requests) == 5
    assert folder.is_dir()


def test_without_a_folder_nothing_is_cached(
    remote: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATUREMAPS_CACHE", raising=False)
    with Archive.open(URL) as archive:
        archive.layers["conv1"][:]
    with pytest.raises(ConfigError, match="cache=rows: set FEATUREMAPS_CACHE"):
        Archive.open(URL, cache="rows")
    assert not [*tmp_path.iterdir()]


def test_damaged_entries_are_read_again(
    remote: ObjectStore, folder: Path, expected: list[np.ndarray]
) -> None:
    epoch(ActivationLoader(URL, "conv1", 3, cache="rows"))
    entries = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(entries) == 7  # the ends of the index and of three shards, and the shards' rows

    def flipped(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    for damage in (flipped, lambda content: content[:-1], lambda _: b""):
        for path, content in entries.items():
            path.write_bytes(damage(content))
        remote.clear()
        loader = ActivationLoader(URL, "conv1", 3, cache="rows")
        np.testing.assert_array_equal(epoch(loader), expected[0])
        assert remote.count("GET", "shards") == 6
        assert {path: path.read_bytes() for path in folder.iterdir()} == entries


def test_a_damaged_object_is_not_kept(remote: ObjectStore, folder: Path) -> None:
    key = "runs/1/shards/00001.h5"
    client = boto3.client("s3", endpoint_url=remote.endpoint)
    content = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with Archive.open(URL, cache="rows") as archive:
        expected = archive.layers["conv1"][3]
    at = content.index(expected.tobytes())
    for damaged in (at, content.index(b'{"fingerprint"') + 20, len(content) - 4):
        for entry in folder.iterdir():
            entry.unlink()
        bad = bytearray(content)
        bad[damaged] ^= 1
        client.put_object(Bucket=BUCKET, Key=key, Body=bytes(bad))
        with Archive.open(URL, cache="rows") as archive:
            for _ in range(2):
                with pytest.raises(ArchiveError, match="damaged"):
                    archive.layers["conv1"][3]
        client.put_object(Bucket=BUCKET, Key=key, Body=content)
        with Archive.open(URL, cache="rows") as archive:
            np.testing.assert_array_equal(archive.layers["conv1"][3], expected)


def test_an_archive_that_was_replaced_is_read_again(
    remote: ObjectStore, folder: Path, tmp_path: Path, tiny_archive: Path
) -> None:
    with Archive.open(URL, cache="rows") as archive:
        before = archive.layers["conv1"][:]
    dataset = Synthetic(samples=7, height=20, width=24, seed=5)
    other = extract(tiny_extraction(tmp_path / "other", dataset=dataset)).archive
    client = boto3.client("s3", endpoint_url=remote.endpoint)
    for file in Path(str(other)).rglob("*"):
        if file.is_file():
            name = file.relative_to(str(other)).as_posix()
            client.put_object(Bucket=BUCKET, Key=f"runs/1/{name}", Body=file.read_bytes())
    with Archive.open(URL, cache="rows") as archive, Archive.open(other) as local:
        np.testing.assert_array_equal(archive.layers["conv1"][:], local.layers["conv1"][:])
        assert not np.array_equal(archive.layers["conv1"][:], before)


def test_the_least_recently_used_are_deleted(tmp_path: Path) -> None:
    cache, content = DiskCache(tmp_path / "c", 1000), np.arange(92, dtype=np.uint8)
    out = np.empty(92, np.uint8)
    for number in range(8):
        cache.write(f"{number}", content)  # 100 bytes with their checksum
        os.utime(tmp_path / "c" / f"{number}", (number, number))
    assert cache.read("0", out)
    np.testing.assert_array_equal(out, content)
    for number in range(8, 30):
        cache.write(f"{number}", content)
        assert sum(path.stat().st_size for path in (tmp_path / "c").iterdir()) <= 1000
    assert not cache.read("1", out)
    assert cache.read("29", out)


def test_the_cache_stays_small(
    remote: ObjectStore, folder: Path, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATUREMAPS_CACHE_GB", "0.00003")
    monkeypatch.setattr(object_bytes, "_BLOCK", 1000)
    loader = ActivationLoader(URL, "conv1", 3, cache="rows")
    for values in expected:
        np.testing.assert_array_equal(epoch(loader), values)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 30_000


@pytest.mark.parametrize("cause", ["a file", "a full disk"])
def test_a_folder_that_cannot_be_written_is_logged_once(
    remote: ObjectStore, folder: Path, expected: list[np.ndarray], cause: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def full(path: Path, *, durable: bool) -> None:
        raise DiskFullError(str(path)) from OSError(28, "No space left on device")

    if cause == "a file":
        folder.parent.write_text("not a folder")
    else:
        monkeypatch.setattr(disk_cache, "replacing", full)
    loader = ActivationLoader(URL, "conv1", 3, cache="rows")
    with caplog.at_level(logging.WARNING):
        for values in expected:
            np.testing.assert_array_equal(epoch(loader), values)
    logged = [record for record in caplog.records if "FEATUREMAPS_CACHE" in record.getMessage()]
    assert len(logged) == 1


_READ = """
import sys, numpy as np
from pipeline import Archive
with Archive.open(sys.argv[1], cache="rows") as archive:
    for _ in range(5):
        values = archive.layers["conv1"][:]
        np.testing.assert_array_equal(values, np.load(sys.argv[2]))
"""


@pytest.mark.slow
def test_processes_share_it(
    remote: ObjectStore, folder: Path, tiny_archive: Path, tmp_path: Path
) -> None:
    """Two processes use a cache that is too small, and delete entries that the other one reads."""
    with Archive.open(tiny_archive) as archive:
        np.save(tmp_path / "expected.npy", archive.layers["conv1"][:])
    command = [sys.executable, "-c", _READ, URL, str(tmp_path / "expected.npy")]
    environment = {**os.environ, "FEATUREMAPS_CACHE_GB": "0.0006"}
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert 0 < sum(path.stat().st_size for path in folder.iterdir()) <= 600_000


@pytest.mark.slow
def test_loader_processes_share_it(remote: ObjectStore, folder: Path, tiny_archive: Path) -> None:
    local = ActivationDataset(tiny_archive, "conv1")
    for number in range(2):
        data = ActivationDataset(URL, "conv1", cache="rows")
        remote.clear()
        loader = DataLoader(data, 2, num_workers=2, multiprocessing_context="spawn")
        values = np.concatenate([batch[0]["conv1"].numpy() for batch in loader])
        np.testing.assert_array_equal(values, np.stack([item[0]["conv1"] for item in local]))
        assert (remote.count("", "shards") > 0) == (number == 0)


def test_options(
    remote: ObjectStore, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tiny_archive: Path
) -> None:
    assert pickle.loads(pickle.dumps(place(URL, cache="rows"))).caches_rows
    assert len(Archive.open(tiny_archive, cache="rows")) == 7
    with pytest.raises(ConfigError, match="cache: unknown value 'all'; use rows"):
        Archive.open(URL, cache="all")
    for size in ("", "x", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("FEATUREMAPS_CACHE_GB", size)
        with pytest.raises(ConfigError, match="FEATUREMAPS_CACHE_GB: expected a positive number"):
            disk_cache.disk_cache()
    code, _, err = run("info", URL)
    assert (code, err.count("\n")) == (2, 1), err
    monkeypatch.delenv("FEATUREMAPS_CACHE_GB")
    monkeypatch.setenv("FEATUREMAPS_CACHE", "s3://bucket/cache")
    with pytest.raises(ConfigError, match="URLs are not supported"):
        disk_cache.disk_cache()
