"""Every command of the documents runs, and every Python snippet too."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import urllib.request
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import pipeline
from pipeline.cli.main import main, parser
from pipeline.config.plugins import PLUGINS, SINGLE, kinds
from tests.conftest import REPOSITORY, Run

SITE = REPOSITORY / ".github" / "docs"
PAGES = [str(path.relative_to(REPOSITORY)) for path in sorted(SITE.rglob("*.md"))]
DOCUMENTS = ("README.md", "conf/README.md", "pipeline/archive/README.md", *PAGES)
TEXTS = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in DOCUMENTS}
SETUP = {
    "pip install uv",
    "pip install featuremaps",
    "uv run pytest",
    "uv run pytest -m slow",
    "uv run pytest -m broad",
    ".ci/run",
    'eval "$(featuremaps completion bash)"',  # tests/cli/test_completion.py
}


def blocks(text: str) -> list[tuple[str, str]]:
    """Return language and text of every code block of a document."""
    return re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)


def commands(block: str) -> list[str]:
    """Return the command lines of a block, continued lines joined, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip() and line[0] != "#"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_have_nothing_but_commands_that_exist_and_code_that_compiles(name: str) -> None:
    known = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for kind, block in blocks(TEXTS[name]):
        if kind == "python":
            compile(block, name, "exec")
        for command in commands(block) if kind in ("bash", "text") else ():
            if command.removeprefix("uv run ").startswith("featuremaps "):
                assert shlex.split(command.removeprefix("uv run "))[1] in known, command
            else:
                assert kind == "text" or command in SETUP, command


@pytest.mark.parametrize("name", [*DOCUMENTS, ".github/CONTRIBUTING.md", "scripts/README.md"])
def test_what_documents_refer_to_exists(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in path or (REPOSITORY / name).parent.joinpath(path).is_file(), path


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 90


def test_the_configuration_map_is_complete_and_true(run: Run) -> None:
    composed = OmegaConf.create(run("run", "--cfg", "job")[1])
    lines = TEXTS["conf/README.md"].splitlines()
    rows = [row.split("|")[1:] for row in lines if row.startswith("| ")][1:]
    groups = [re.findall(r"`(\w+)`", row[0]) for row in rows]
    folders = {path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir()}
    known = (folders - {"hydra"}) | {*PLUGINS, *SINGLE}
    assert {name for names in groups for name in names} == known
    for names, row in zip(groups, rows, strict=True):
        keys = re.findall(r"`(\w+)(?:\.\*)?`", row[2])
        if names in (["dataset"], ["model"]):
            of_kinds = {f.name for kind in kinds(names[0]).values() for f in fields(kind)}
            assert (
                set(keys) - {"checkpoint", "csv", "webdataset", "torchvision", "huggingface"}
                <= of_kinds
            )
        elif names in ([], ["layers"], ["loader"], ["storage"], ["shard"], ["render"]):
            assert set(keys) <= set(composed[names[0]] if names else composed), names


OTHER_LANGUAGES = ("r", "matlab")
QUICK = ".github/docs/concepts/reductions.md"
OTHERS = r"^(?:thingsvision|TorchLens|torchextractor|captum)\b[^\n]*:\n\n```python\n.*?```"


@pytest.mark.parametrize(
    "name",
    [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DOCUMENTS],
)
def test_every_command_and_snippet_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the document's order, in one folder: later commands use what earlier ones made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "digits", raising=False)  # another test's
    shared: dict[str, object] = {}
    compared = "coming-from" in name  # with code of other tools, which scripts/coming_from.py runs
    if compared and not name.endswith("index.md"):
        ((_, setup),) = blocks(TEXTS[".github/docs/coming-from/index.md"])
        exec(compile(setup, name, "exec"), shared)
    text = re.sub(OTHERS, "", TEXTS[name], flags=re.DOTALL | re.MULTILINE)
    for kind, block in blocks(text if compared else TEXTS[name]):
        if kind == "python":
            exec(compile(block, name, "exec"), shared if compared else {})
        for path in (
            re.findall(r"""["'](outputs/.*?)["']""", block) if kind in OTHER_LANGUAGES else ()
        ):
            assert Path(path).is_file(), path
        if kind == "r" and (rscript := shutil.which("Rscript")):
            subprocess.run([rscript, "-e", block], check=True, capture_output=True)
        for command in commands(block) if kind == "bash" else ():
            if command not in SETUP:
                words = shlex.split(command.removeprefix("uv run ").removeprefix("featuremaps "))
                assert serves(words) if words[0] == "serve" else main(words) == 0, command


@pytest.mark.slow
@pytest.mark.parametrize("library", ["lightning", "overcomplete", "saev"])
def test_snippets_for_libraries_that_may_be_missing(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    assert main(["extract", "layers.include=[blocks.2]", "archive=outputs/stages"]) == 0
    snippets = [
        block for name in DOCUMENTS for kind, block in blocks(TEXTS[name])
        if kind == "py" and re.search(rf"^(import|from) {library}\b", block, flags=re.MULTILINE)
    ]  # fmt: skip
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, library, "exec"), {})


def serves(words: list[str]) -> bool:
    """Tell whether a server begins to answer, and ends at Ctrl-C."""
    environment = dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "pipeline.cli", *words, "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(url) as answer:
        answered = answer.status == 200
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    return answered and process.returncode == 0


def test_the_examples_of_the_public_functions_run_and_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for function in (pipeline.extract, pipeline.render, pipeline.capture, pipeline.similarity,
                     pipeline.health, pipeline.rsa_against):  # fmt: skip
        text = inspect.getdoc(function) or ""
        example = next(p for p in re.split(r"\n\n(?=\S)", text) if p.startswith("Example"))
        code = textwrap.dedent(example.partition("\n")[2])
        assert 0 < len(code.strip().splitlines()) <= 8, function
        exec(compile(code, function.__name__, "exec"), {"pipeline": pipeline, "np": np})


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, pipeline; print(*{'torch', 'numpy', 'h5py', 'hydra'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "", done
    assert {"Archive", "ActivationDataset", "Extraction", "capture", "extract", "render"} <= {
        *dir(pipeline)
    }
    for name in dir(pipeline):
        assert getattr(pipeline, name) is not None
