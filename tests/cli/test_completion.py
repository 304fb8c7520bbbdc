"""Completion: what there is, and that the shells' scripts hand it over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.completion import words
from tests.conftest import Run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run mod", ["model.", "model="]),
        ("run model=vgg1", [f"model=vgg{n}" for n in (11, 13, 16, 19)]),
        ("run dataset.limit=2 model=swin", ["model=swin_t"]),
        ("run model=tiny,swin", ["model=tiny,swin_t"]),
        ("run dataset=sy", ["dataset=synthetic"]),
        ("run exper", ["experiment="]),
        ("run sweep=se", ["sweep=seeds"]),
        ("render renderers=[grid,p", ["renderers=[grid,pca"]),
        ("render renderers.grid.colu", ["renderers.grid.columns="]),
        ("extract storage.codec=", [f"storage.codec={c}" for c in ("none", "gzip", "zstd")]),
        ("extract precision=b", ["precision=bfloat16"]),
        ("run channels_last=", ["channels_last=true", "channels_last=false"]),
        ("extract model=timm model.na", ["model.name="]),
        ("run model=timm model.name=resn", []),
        ("run dataset.ids_c", []),
        ("run model.transform.cr", ["model.transform.crop="]),
    ],
)
def test_overrides_are_completed(line: str, expected: list[str]) -> None:
    root, *_, word = line.split()
    assert words(root, word) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run +many=", ["+many=one", "+many=two"]),
        ("run +ma", ["+many="]),
        ("run model=mi", ["model=mine"]),
        ("run model=mine +many=one dataset=sy", ["dataset=synthetic"]),
    ],
)
def test_files_of_the_user_are_completed(line: str, expected: list[str], tmp_path: Path) -> None:
    for name in ("many/one", "many/two", "model/mine"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text("# @package _global_\nseed: 1\n")
    (tmp_path / "model" / "mine.yaml").write_text("defaults:\n  - tiny\n")
    root, *_, word = line.split()
    assert sorted(words(root, word, str(tmp_path))) == expected


def test_an_empty_word_may_become_any_key() -> None:
    keys = words("render", "")
    assert {"archive=", "render.", "renderers.", "renderers="} <= set(keys)
    assert not {"model=", "schema", "hydra."} & set(keys)


def test_usage(run: Run) -> None:
    assert "featuremaps" in run("completion", "bash")[1]
    assert run("completion")[0] == 2
    code, _, err = run("completion", "zhs")
    assert code == 2
    assert "zsh" in err


_ASK = {
    "bash": 'eval "$(featuremaps completion bash)"; COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9; '
    "COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _python_argcomplete featuremaps; "
    'printf "%s\\n" "${COMPREPLY[@]}"',
    "fish": "featuremaps completion fish | source; complete -C $argv[1]",
    "zsh": 'compdef() { :; }; eval "$(featuremaps completion zsh)"; '
    "words=(${(s: :)1}); CURRENT=$#words; _describe() { print -l -- ${(P)2}; }; "
    "_python_argcomplete featuremaps",
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", sorted(_ASK))
def test_shells_take_it(shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def ask(line: str) -> set[str]:
        words = [program, "-c", _ASK[shell], *(["zsh"] if shell != "fish" else []), line]
        done = subprocess.run(
            words, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.stderr == ""
        return {
            word.rpartition("=")[2] if shell == "bash" else word for word in done.stdout.split()
        }

    head = "" if shell == "bash" else "model="  # bash holds the words apart at "="
    assert ask("featuremaps ver") == {"verify"}
    assert ask("featuremaps run -cd . model=resnet3") == {f"{head}resnet34"}
    assert ask("featuremaps run model=resnet1") == {f"{head}resnet{n}" for n in (18, 101, 152)}
