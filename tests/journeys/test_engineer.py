"""A day with sweeps: an experiment file of one's own, a kill, a preview, and the same command."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import Archive
from pipeline.archive.tools.compare import compare
from pipeline.cli.main import main
from pipeline.models.tiny import tiny_network
from tests.conftest import Run
from tests.helpers.processes import start, wait_for

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


@pytest.mark.slow
def test_three_checkpoints_named_by_epoch_and_their_drift(run: Run, tmp_path: Path) -> None:
    """The same network after 2, 10 and 11 epochs; in the last, a layer has died."""
    (tmp_path / "ckpt").mkdir()
    torch.manual_seed(0)
    state = tiny_network().state_dict()
    for epoch, scale in ((2, 1.0), (10, 3.0), (11, 0.0)):
        changed = {name: value * scale if name.startswith("conv2") else value
                   for name, value in state.items()}  # fmt: skip
        torch.save(changed, tmp_path / "ckpt" / f"epoch{epoch}.pt")
    words = ("model=tiny", "dataset=synthetic", "dataset.samples=3", "device=cpu",
             "layers.include=[conv1,conv2]")  # fmt: skip
    sweep = (f"model.weights=glob:{tmp_path}/ckpt/*.pt", f"hydra.sweep.dir={tmp_path}/sweep")
    assert main(("extract", "-m", *words, *sweep)) == 0
    code, said, err = run("health", str(tmp_path / "sweep"), "--json")
    assert code == 0, err
    found = json.loads(said)
    names = [f"weights=epoch{epoch}" for epoch in (2, 10, 11)]
    values = {}
    for name in names:
        with Archive.open(tmp_path / "sweep" / "archives" / name) as archive:
            values[name] = archive.layers["conv2"][:].astype(np.float64)
    rows = {row["archive"]: row for row in found["layers"] if row["layer"] == "conv2"}
    assert list(rows) == names
    before = values[names[0]]
    for name, now in values.items():
        row = rows[name]
        assert row["dead"] == (~now.any(axis=(0, 2, 3))).sum() == (6 if "11" in name else 0)
        assert row["std"] == pytest.approx(now.std(), rel=1e-5)
        drift = (now.mean() - before.mean()) / abs(before.mean())
        assert row["mean_drift"] == pytest.approx(drift, rel=1e-4, abs=1e-6)
    assert rows[names[1]]["std_drift"] == pytest.approx(2, rel=1e-4)  # three times as large
    code, said, _ = run("health", str(tmp_path / "sweep"))
    assert "layers: 6 examined, 1 to look at" in said
    assert (tmp_path / "sweep" / "health" / "health.csv").is_file()
