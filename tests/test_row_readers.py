"""Rows are the same however a file is read: mapped, read, through HDF5."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.archive import schema, shards
from pipeline.archive.activation_dataset import ActivationDataset
from pipeline.archive.reader import Archive
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage
from pipeline.foundation.errors import ArchiveError
from pipeline.foundation.machine import on_local_disk
from tests.conftest import tiny_extraction

NAME = schema.activation_rows("conv1")


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.fixture(scope="module", params=["mapped", "read", "gzip"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def source(tiny_archive: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shards, "on_local_disk", lambda path: way == "mapped")
    if way != "gzip":
        return tiny_archive
    extract(tiny_extraction(tmp_path / "a", storage=Storage(codec="gzip", shard_samples=3)))  # type: ignore[arg-type]
    return tmp_path / "a"


def test_rows_are_the_same_in_every_way(source: Path, opened: Archive) -> None:
    expected = opened.layers["conv1"][:]
    with Archive.open(source) as archive:
        layer = archive.layers["conv1"]
        np.testing.assert_array_equal(layer[:], expected)
        np.testing.assert_array_equal(layer[5, 1:3, ::2], expected[5, 1:3, ::2])
        np.testing.assert_array_equal(layer[[6, 0, 3]], expected[[6, 0, 3]])
        np.testing.assert_array_equal(layer.sample_max, opened.layers["conv1"].sample_max)
        for threads in (1, 3):
            out = np.zeros((9, *layer.shape[1:]), np.float32)
            archive.read_into(NAME, [6, 0, 3, 3], out, [8, 1, 0, 5], threads=threads)
            np.testing.assert_array_equal(out[[8, 1, 0, 5]], expected[[6, 0, 3, 3]])
            assert not out[[2, 3, 4, 6, 7]].any()


def test_few_files_are_open_at_once(
    source: Path, opened: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_OPEN_FILES", 1)
    monkeypatch.setattr(shards, "_OPEN_IN_HDF5", 1)
    with Archive.open(source) as archive:
        before = open_files()
        for row in (0, 6, 3, 1, 5, 0):
            np.testing.assert_array_equal(archive.layers["conv2"][row], opened.layers["conv2"][row])
        assert open_files() <= before + 2


def test_a_file_that_is_cut_short_is_an_error(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    shutil.copytree(source, path)
    shard = path / "shards" / "00001.h5"
    shard.write_bytes(shard.read_bytes()[:5000])
    with Archive.open(path) as archive:
        archive.layers["conv1"][0]
        with pytest.raises(ArchiveError, match=r"00001\.h5: damaged"):
            archive.layers["conv1"][3]


def test_what_a_batch_holds_stays_as_it_is(tiny_archive: Path, opened: Archive) -> None:
    """Memory is used again only when nobody holds it any more."""
    data = ActivationDataset(tiny_archive, "conv1")
    batches = [data.__getitems__([row, row + 1]) for row in range(6)]
    for row, items in enumerate(batches):
        for place, (found, _) in enumerate(items):
            np.testing.assert_array_equal(found["conv1"], opened.layers["conv1"][row + place])


def test_network_file_systems_are_known_by_their_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for kind, local in (("ext4", True), ("nfs4", False), ("fuse.sshfs", False), ("tmpfs", True)):
        line = f"36 35 {number} / /mnt rw,noatime master:1 - {kind} host:/x rw\n"
        monkeypatch.setattr(Path, "read_text", lambda *_, text=line, **__: text)
        assert on_local_disk(tmp_path) is local
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "")
    assert not on_local_disk(tmp_path)
