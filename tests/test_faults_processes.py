"""The fault matrix, processes: workers that die, hang or raise; SIGINT and SIGTERM."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from pipeline.datasets.base import ImageDataset, Images, Sample
from pipeline.errors import SampleError
from pipeline.execution import Storage
from pipeline.extract import extract
from pipeline.loader import Loader
from tests.conftest import photo, tiny_extraction
from tests.processes import SLOW, start, wait_for

# ---------------------------------------------------------------- workers


class Troubled(ImageDataset):
    """Images whose third item does what `deed` says, in the worker."""

    def __init__(self, deed: str) -> None:
        object.__setattr__(self, "deed", deed)
        object.__setattr__(self, "limit", None)

    def open(self) -> Images:
        return TroubledImages(self.deed)  # type: ignore[attr-defined]


class TroubledImages:
    def __init__(self, deed: str) -> None:
        self.deed = deed
        self.samples = [Sample(id=str(i)) for i in range(12)]

    def read(self, index: int) -> Image.Image:
        if index == 8:
            if self.deed == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.deed == "hang":
                time.sleep(600)
            if self.deed == "unpicklable":
                raise type("Odd", (Exception,), {"__reduce__": lambda _self: 1 / 0})("odd")
        return Image.fromarray(photo(index))


@pytest.mark.parametrize(
    ("deed", "text"),
    [
        ("die", "a worker process failed"),
        ("hang", r"no batch for 2 s \(loader\.timeout\)"),
        ("unpicklable", r"sample 8 \(8\): Odd: odd"),
    ],
)
def test_worker_dies_hangs_or_raises(deed: str, text: str, tmp_path: Path) -> None:
    config = tiny_extraction(
        tmp_path / "a",
        dataset=Troubled(deed),
        loader=Loader(batch_size=1, num_workers=1, timeout=2),
        storage=Storage(shard_samples=1),
    )
    with pytest.raises(SampleError, match=text):
        extract(config)
    assert list((tmp_path / "a" / "shards").glob("0*.h5"))
    assert not list((tmp_path / "a" / "shards").glob(".*"))


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("workers", "number", "code"),
    [
        (0, signal.SIGINT, 130),
        (2, signal.SIGTERM, 143),
        pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.broad),
        pytest.param(0, signal.SIGTERM, 143, marks=pytest.mark.broad),
    ],
)
def test_sigint_and_sigterm_finish_the_batch_and_leave_with_their_code(
    workers: int, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    extra = (f"archive={tmp_path / 'a'}", f"hydra.run.dir={tmp_path / 'run'}")
    command = (*SLOW, "dataset.samples=400", f"loader.num_workers={workers}", *extra)
    process = start(*command)
    shards = tmp_path / "a" / "shards"
    wait_for(lambda: shards.is_dir() and len(list(shards.glob("0*.h5"))) >= 1, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert err.splitlines()[-1].startswith("featuremaps: error: stopped by")
    assert "Traceback" not in err
    assert not list(shards.glob(".*"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


# ---------------------------------------------------------------- a sweep job fails


def test_a_sweep_job_fails_and_the_others_finish(tmp_path: Path) -> None:
    """The middle one of three asks for a layer that is not there."""
    sweep = tmp_path / "sweep"
    command = (
        "extract", "-m", "model=tiny", "dataset=synthetic", "dataset.samples=4", "device=cpu",
        "dataset.height=24", "dataset.width=24", "loader.num_workers=0",
        "layers.include=[conv1],[nonsense],[conv2]", f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    process = start(*command)
    out, err = process.communicate(timeout=120)
    assert process.returncode not in (0, None), err
    assert "nonsense" in err.splitlines()[-1]
    states = [json.loads((sweep / str(i) / "status.json").read_text()) for i in range(3)]
    assert [status["state"] for status in states] == ["done", "failed", "done"]
    assert "nonsense" in states[1]["error"]
    assert "Traceback" in (sweep / "1" / "featuremaps.log").read_text()
    assert "Traceback" not in (sweep / "0" / "featuremaps.log").read_text()
    assert "2 of 3 jobs done" in out
    with (sweep / "catalogue.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert [row["images"] for row in rows] == ["4", "", "4"]
    shards = sorted(sweep.rglob("shards/*.h5"))
    before = {path: path.stat().st_mtime_ns for path in shards}
    assert len(before) == 2
    again = start(*command)
    out, _ = again.communicate(timeout=120)
    assert again.returncode != 0
    assert before == {path: path.stat().st_mtime_ns for path in shards}  # only what is missing
