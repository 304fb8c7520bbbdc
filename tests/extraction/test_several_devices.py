"""`devices=`: a process for each device, one archive."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from tests.helpers.processes import SLOW, start, wait_for

SEVERAL = (*(word for word in SLOW if not word.startswith("device=")), "devices=[cpu,cpu]")


def test_devices_that_do_not_exist_or_contradict_are_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for words, said in [
        (["devices=all"], "no CUDA device"),
        (["devices=[0,1]"], "cuda:0 is not available"),
        (["devices=[cpu,cpu]", "device=cpu"], "remove device or devices"),
        (["devices=[cpu,cpu]", "shard.count=2"], "remove shard"),
    ]:
        code, _, err = run("extract", "model=tiny", f"archive={tmp_path / 'a'}", *words)
        assert code == 2
        assert said in err
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_devices_write_what_one_device_writes(run: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(*SLOW, f"archive={one}")[0] == 0
    code, out, err = run(*SEVERAL, f"archive={two}")
    assert code == 0, err
    assert run("compare", str(one), str(two))[0] == 0
    assert run("verify", str(two))[0] == 0
    assert re.search(rf"archive: +{two}", out)
    code, _, err = run(*SEVERAL, f"archive={tmp_path / 'three'}", "layers.include=[nowhere]")
    assert code == 2
    assert "no layer 'nowhere'" in err


def _children(pid: int) -> list[int]:
    """Return the processes that write a part."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    commands = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in text.split()}
    return [int(child) for child, command in commands.items() if b"spawn_main" in command]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("a process is killed", marks=pytest.mark.slow),
        pytest.param("interrupted", marks=pytest.mark.broad),
        pytest.param("the first one is killed", marks=pytest.mark.broad),
    ],
)
def test_a_stopped_run_resumes(run: Run, tmp_path: Path, how: str) -> None:
    archive = tmp_path / "archive"
    words = (*SEVERAL, f"archive={archive}")
    started = start(*words)
    wait_for(lambda: len([*archive.glob("shards/*.h5")]) >= 2, started)
    parts = _children(started.pid)
    assert len(parts) == 2
    if how == "a process is killed":
        os.kill(parts[0], signal.SIGKILL)
    else:
        os.kill(started.pid, signal.SIGINT if how == "interrupted" else signal.SIGKILL)
    _, err = started.communicate()
    if how == "a process is killed":
        assert started.returncode == 1
        assert "a process ended early" in err
    elif how == "interrupted":
        assert started.returncode == 130
        assert "stopped by SIGINT" in err
    while any(Path(f"/proc/{part}").exists() for part in parts):
        time.sleep(0.05)
    assert run(*words)[0] == 0
    reference = tmp_path / "reference"
    assert run(*SLOW, f"archive={reference}")[0] == 0
    assert run("compare", str(reference), str(archive))[0] == 0
