"""Parts of one extraction: the last one completes the archive, `info` tells how far they are."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.archive.format import schema
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.writing import lock
from pipeline.archive.writing.active_writers import writers
from pipeline.common.errors import ArchiveError
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Shard
from pipeline.models.tiny import TinyModel
from tests.conftest import Run, tiny_extraction
from tests.helpers.stored_arrays import assert_same_arrays
from tests.helpers.tiny_words import TINY


def part(path: Path, index: int, count: int = 3) -> bool:
    return extract(tiny_extraction(path, shard=Shard(index=index, count=count))).complete


def test_a_part_that_finishes_beside_another_leaves_it_to_complete_the_archive(
    run: Run, tiny_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "parts"
    assert not part(path, 1)
    assert not part(path, 2)
    with lock.writing(path, part=1):
        assert not part(path, 0)
        assert not (path / schema.COMPLETE).exists()
    code, out, _ = run("info", str(path))
    assert code == 0
    assert "3 parts: 3 finished" in out
    assert f"next      featuremaps stitch archive={path}" in out
    assert part(path, 1)
    assert_same_arrays(tiny_archive, path)
    code, out, _ = run("info", str(path))
    assert "writers" not in out
    assert "next" not in out


def test_the_progress_of_a_part_counts_its_own_samples(run: Run, tmp_path: Path) -> None:
    words = (*TINY, "loader.batch_size=1", f"archive={tmp_path / 'parts'}", "shard.count=2")
    _, _, err = run("extract", *words, "shard.index=0")
    assert "extract: 1/1 images" in err
    _, _, err = run("extract", *words, "shard.index=1")
    assert "extract: 2/2 images" in err


def test_a_damaged_shard_of_another_part_is_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    part(path, 0, 2)
    shard = schema.shard_path(path, 0)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArchiveError, match="damaged"):
        part(path, 1, 2)
    assert not (path / schema.COMPLETE).exists()


@pytest.mark.parametrize("foreign", ["another", pytest.param("same", marks=pytest.mark.slow)])
def test_a_shard_of_other_rows_is_refused_with_the_remedy(foreign: str, tmp_path: Path) -> None:
    path, other = tmp_path / "parts", tmp_path / "other"
    seed = {"another": 1, "same": 0}[foreign]
    extract(tiny_extraction(other, model=TinyModel(weights=None), seed=seed))
    extraction = tiny_extraction(path, model=TinyModel(weights=None))
    extract(replace(extraction, shard=Shard(index=0, count=3)))
    shutil.copy(schema.shard_path(other, 2), schema.shard_path(path, 1))
    remedy = (
        r"00001\.h5: damaged shard \(it belongs to another .*; delete it and run the extraction"
    )
    with pytest.raises(ArchiveError, match=remedy):
        extract(extraction)
    schema.shard_path(path, 1).unlink()
    assert extract(extraction).complete


def test_info_tells_rate_time_left_and_which_parts_stopped(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "parts"
    part(path, 0, 2)  # of three shards
    part(path, 1, 2)
    (path / schema.COMPLETE).unlink()
    shards = Manifest.read(path).shards
    sizes = [stop - start for start, stop in shards]
    schema.shard_path(path, 2).unlink()
    os.utime(path / "lock.1", (1000, 1000))
    os.utime(schema.shard_path(path, 1), (1010, 1010))
    first, second = writers(path, Manifest.read(path), now=1011.0)
    assert (first.state, first.done, first.samples) == ("finished", sizes[0], sizes[0])
    assert (second.state, second.host, second.pid) == (
        "stopped", socket.gethostname(), os.getpid(),
    )  # fmt: skip
    assert (second.done, second.samples) == (sizes[1], sizes[1] + sizes[2])
    assert second.rate == pytest.approx(sizes[1] / 10)
    assert second.seconds_left is None
    _, out, _ = run("info", str(path))
    assert f"part 1 of 2: stopped on {socket.gethostname()} (process {os.getpid()})" in out
    assert "next      run the same extraction again" in out
    with lock.writing(path, part=1):
        _, second = writers(path, Manifest.read(path), now=1011.0)
        assert second.state == "running"
        assert second.seconds_left == pytest.approx(10 * sizes[2] / sizes[1] - 1)
        _, out, _ = run("info", str(path), "--json")
        assert [one["state"] for one in json.loads(out)["writers"]] == ["finished", "running"]
        _, out, _ = run("info", str(path))
        assert "1 finished, 1 running; together" in out
        assert "next" not in out


@pytest.mark.parametrize(
    "note", ["", "[]", "{", '{"host": 3}', '{"host":"a","pid":1,"index":0,"count":1000000000}']
)
def test_a_lock_file_with_other_content_tells_nothing(run: Run, tmp_path: Path, note: str) -> None:
    path = tmp_path / "parts"
    part(path, 0, 2)
    (path / "lock.0").write_text(note)
    code, out, err = run("info", str(path))
    assert (code, err) == (0, "")
    assert "writers" not in out
