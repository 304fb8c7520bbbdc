"""Under torchrun every rank does its own part, in its own run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.cli.torchrun import for_this_rank
from pipeline.common.errors import ConfigError
from tests.conftest import REPOSITORY, Run
from tests.helpers.stored_arrays import assert_same_arrays
from tests.helpers.tiny_words import TINY

WORLD = {"RANK": "1", "WORLD_SIZE": "3"}


def test_a_rank_takes_its_part_and_a_run_folder_of_its_own() -> None:
    given = ["archive=a", "hydra.run.dir=here", "seed=1"]
    assert for_this_rank("extract", given, WORLD) == [
        "archive=a", "seed=1", "shard.index=1", "shard.count=3", "hydra.run.dir=here/rank-1",
    ]  # fmt: skip
    assert for_this_rank("run", ["archive=a"], WORLD)[-1].endswith("/rank-1")
    assert for_this_rank("extract", given, {}) == given
    assert for_this_rank("extract", given, {"RANK": "0", "WORLD_SIZE": "1"}) == given


@pytest.mark.parametrize(
    ("command", "given", "environment", "text"),
    [
        ("extract", ["seed=1"], WORLD, "archive: is required"),
        ("extract", ["archive=a", "shard.count=2"], WORLD, "remove shard"),
        ("run", ["-m", "archive=a"], WORLD, "without torchrun"),
        ("run", ["sweep=seeds", "archive=a"], WORLD, "without torchrun"),
        ("render", ["archive=a"], WORLD, "without torchrun"),
    ],
)
def test_what_ranks_cannot_share_is_refused(
    command: str, given: list[str], environment: dict[str, str], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        for_this_rank(command, given, environment)


@pytest.mark.parametrize(
    ("rank", "text"),
    [("3", "shard: index must be in 0..count-1"), ("x", "shard.index: must be an integer"),
     ("-1", "shard.index: must be at least 0")],
)  # fmt: skip
def test_ranks_out_of_range_are_refused(
    rank: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "3")
    code, _, err = run("extract", *TINY, f"archive={tmp_path / 'a'}")
    assert code == 2
    assert text in err


@pytest.mark.slow
def test_torchrun_with_two_processes_gives_each_sample_once_and_in_order(tmp_path: Path) -> None:
    """1003 samples in a small way: 11 do not divide by two, and nothing is padded."""
    command = [
        "extract", "model=tiny", "dataset=synthetic", "dataset.samples=11", "dataset.height=24",
        "dataset.width=24", "loader.batch_size=2", "loader.num_workers=0", "device=cpu",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip

    def call(*words: str, archive: str) -> str:
        done = subprocess.run(
            [
                sys.executable,
                *words,
                "-m",
                "pipeline.cli",
                *command,
                f"archive={tmp_path / archive}",
            ],
            cwd=REPOSITORY,
            # torchrun would set one thread for its ranks alone, and rounding depends on threads
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    out = call(*torchrun, archive="ranks")
    assert out.count("archive:  ") == 2
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"rank-0", "rank-1"}
    call(archive="one")
    assert_same_arrays(tmp_path / "one", tmp_path / "ranks")
    with Archive.open(tmp_path / "ranks") as archive:
        assert [s.id for s in archive.samples] == [f"synthetic-{i:06d}" for i in range(11)]
