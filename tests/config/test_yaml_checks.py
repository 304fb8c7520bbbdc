"""YAML files whose aliases explode are refused, ordinary ones are fine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import Run


@pytest.mark.parametrize("command", ["run", "layers"])
def test_aliases_that_explode_are_refused(tmp_path: Path, run: Run, command: str) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    place = tmp_path / "conf" / "experiment"
    place.mkdir(parents=True)
    (place / "bomb.yaml").write_text("# @package _global_\n" + "\n".join(levels) + "\n")
    flag = ["--config-dir", str(tmp_path / "conf")] if command == "run" else [
        f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    ]  # fmt: skip
    began = time.process_time()
    code, _, err = run(command, *flag, "+experiment=bomb")
    assert time.process_time() - began < 20
    assert code == 2
    assert "bomb.yaml: its aliases (*name) expand to 12,345,679,0" in err
    assert err.count("\n") == 1
    (place / "bomb.yaml").write_text("a: &a [*a]\n")
    assert "infinitely many" in run(command, *flag, "+experiment=bomb")[2]


def test_ordinary_aliases_are_fine(tmp_path: Path, run: Run) -> None:
    place = tmp_path / "conf" / "experiment"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_text(
        "# @package _global_\nlayers:\n  include: &these [conv1]\n  exclude: []\n"
        "renderers:\n  grid:\n    max_channels: &n 3\n    columns: *n\n"
    )
    code, out, err = run("run", "--config-dir", str(tmp_path / "conf"), "+experiment=mine",
                         "model=tiny", "dataset=synthetic", "--cfg", "job")  # fmt: skip
    assert code == 0, err
    assert "columns: 3" in out
