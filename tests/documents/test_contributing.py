"""CONTRIBUTING's worked example, built from the document's own text and run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY, photo

TEXT = (REPOSITORY / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```", TEXT, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("featuremaps ")
]


@pytest.mark.slow
def test_the_worked_example_is_built_and_run(tmp_path: Path) -> None:
    house, photos = tmp_path / "house", tmp_path / "photos"
    for name in ("pipeline", "conf"):
        shutil.copytree(
            REPOSITORY / name, house / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    assert len(FILES) == 2
    for path, content in FILES:
        assert not (house / path).exists()
        (house / path).write_text(content, encoding="utf-8")
    photos.mkdir()
    for i in range(3):
        np.save(photos / f"{i}.npy", photo(i))
    (photos / "4.npy").write_bytes(b"no array")

    def featuremaps(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *words], cwd=house, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    (command,) = COMMANDS
    words = shlex.split(command.replace("DIR", str(photos)))[1:]
    more = ["model=tiny", "on_error=skip", f"hydra.run.dir={tmp_path / 'run'}"]
    done = featuremaps(*words, *more)
    assert done.returncode == 4, done.stderr  # finished, one sample skipped
    pictures = sorted((tmp_path / "run" / "pictures" / "winner_map").glob("*.png"))
    assert len(pictures) == 3
    with Image.open(pictures[0]) as picture:
        assert picture.width > 300
    wrong = featuremaps("run", "dataset=numpy_foldr")
    assert wrong.returncode == 2
    assert "did you mean numpy_folder?" in wrong.stderr
    assert "winner_map" in featuremaps("run", "--help").stdout
    for path, _ in FILES:
        if path.endswith(".py"):
            lint = ["ruff", "check", "--config", str(REPOSITORY / "pyproject.toml")]
            subprocess.run([sys.executable, "-m", *lint, str(house / path)], check=True)


def test_what_it_says_of_the_format_is_so() -> None:
    for path in re.findall(r"`((?:\w+/)?\w+\.py)`", TEXT):
        assert list((REPOSITORY / "pipeline").rglob(path.split("/")[-1])), path


def test_its_table_of_rooms_is_complete() -> None:
    table = re.findall(r"^\| (`.*?) \|", TEXT, flags=re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`([\w.]+)/?`", row)}
    there = {path.name for path in (REPOSITORY / "pipeline").iterdir() if path.name[0] != "_"}
    assert named == there - {"py.typed"}
    assert len(there) <= 16
