"""A day with sweeps: an experiment file of one's own, a kill, a preview, and the same command."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest

from pipeline import Archive
from pipeline.archive.compare import compare
from pipeline.cli.main import main
from tests.conftest import Run
from tests.processes import start, wait_for

EXPERIMENT = """# @package _global_
defaults:
  - override /model: tiny
  - override /dataset: synthetic
layers: {include: [conv1, conv2]}
dataset: {samples: 24, height: 96, width: 96}
loader: {batch_size: 2, num_workers: 0}
storage: {shard_samples: 2}
device: cpu
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_is_previewed(run: Run, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "probe.yaml").write_text(EXPERIMENT, encoding="utf-8")
    sweep = ("extract", "-m", "--config-dir", str(own), "+experiment=probe", "seed=1,2",
             f"hydra.sweep.dir={tmp_path}/sweep")  # fmt: skip
    process = start(*sweep)
    archives = tmp_path / "sweep" / "archives"
    wait_for(lambda: len([*archives.glob("*/shards/*.h5")]) >= 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    [first, *_] = sorted(archives.iterdir())
    if not (first / "COMPLETE.json").exists():
        preview = (f"archive={first}", "render.partial=true", "renderers=[mean_map]")
        code, said, err = run("render", *preview, "render.samples=[0]", folder="preview")
        assert code == 0, err
        assert "gallery:" in said
    before = {path: path.stat().st_mtime_ns for path in archives.glob("*/shards/*.h5")}
    assert main(sweep) == 0
    after = {path: path.stat().st_mtime_ns for path in archives.glob("*/shards/*.h5")}
    assert before.items() <= after.items()
    code, said, _ = run("verify", str(tmp_path / "sweep"))
    assert code == 0
    assert said.count("verified; 24 samples") == 2
    with (tmp_path / "sweep" / "catalogue.csv").open(encoding="utf-8", newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done", "done"]
    straight = ("extract", "--config-dir", str(own), "experiment=probe", "seed=1",
                f"archive={tmp_path}/straight")  # fmt: skip
    assert run(*straight)[0] == 0
    with Archive.open(first) as resumed, Archive.open(tmp_path / "straight") as clean:
        assert resumed.manifest.identity["seed"] == 1
        assert compare(resumed, clean)["equal"]
