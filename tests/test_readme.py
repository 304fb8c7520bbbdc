"""Every command of the README runs, and every Python snippet too."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline.cli.main import main
from pipeline.config.plugins import PLUGINS, SINGLE, kinds
from tests.conftest import REPOSITORY, Run

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)


def commands(block: str) -> list[str]:
    """Return the command lines of a block, continued lines joined, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip() and line[0] != "#"]


COMMANDS = [command for kind, block in BLOCKS if kind == "bash" for command in commands(block)]
SETUP = {
    "pip install uv",
    "uv run pytest",
    "uv run pytest -m broad",
    ".ci/run",
    'eval "$(featuremaps completion bash)"',  # tests/test_completion.py
}


def test_the_readme_has_nothing_but_known_commands() -> None:
    unknown = [c for c in COMMANDS if c not in SETUP and not c.startswith("uv run featuremaps ")]
    assert not unknown


def test_the_pictures_of_the_readme_exist() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT):
        assert (REPOSITORY / path).is_file(), path


def test_the_configuration_map_is_complete_and_true(run: Run) -> None:
    composed = OmegaConf.create(run("run", "--cfg", "job")[1])
    part = TEXT[TEXT.index("## Configuration") : TEXT.index("## The archive")]
    rows = [row.split("|")[1:] for row in part.splitlines() if row.startswith("| ")][1:]
    groups = [re.findall(r"`(\w+)`", row[0]) for row in rows]
    folders = {path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir()}
    known = (folders - {"hydra"}) | {*PLUGINS, *SINGLE}
    assert {name for names in groups for name in names} == known
    for names, row in zip(groups, rows, strict=True):
        keys = re.findall(r"`(\w+)(?:\.\*)?`", row[2])
        if names in (["dataset"], ["model"]):
            known = {f.name for kind in kinds(names[0]).values() for f in fields(kind)}
            assert set(keys) - {"checkpoint", "csv", "torchvision", "huggingface"} <= known
        elif names in ([], ["layers"], ["loader"], ["storage"], ["shard"], ["render"]):
            assert set(keys) <= set(composed[names[0]] if names else composed), names


def test_every_command_and_snippet_runs(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the README's order, in one folder: later commands use what earlier ones made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = 0
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "README.md", "exec"), {})
            ran += 1
        for command in commands(block) if kind == "bash" else ():
            if command in SETUP:
                continue
            words = shlex.split(command.removeprefix("uv run featuremaps "))
            assert main(words) == 0, command
            ran += 1
    assert ran >= 16
