"""Completion: what there is, and that the shells' scripts hand it over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import COMMANDS
from pipeline.completion import complete, script
from pipeline.errors import ConfigError
from tests.conftest import Run


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("featuremaps", []),
        ("featuremaps re", ["render", "reproduce"]),
        ("featuremaps run mod", ["model.", "model="]),
        ("featuremaps run model=vgg1", [f"model=vgg{n}" for n in (11, 13, 16, 19)]),
        ("featuremaps run dataset.limit=2 model=swin", ["model=swin_t"]),
        ("featuremaps run -m model=tiny,swin", ["model=tiny,swin_t"]),
        ("featuremaps render renderers=[grid,p", ["renderers=[grid,pca"]),
        ("featuremaps render renderers.grid.colu", ["renderers.grid.columns="]),
        (
            "featuremaps plan storage.codec=",
            [f"storage.codec={c}" for c in ("none", "gzip", "zstd")],
        ),
        ("featuremaps extract precision=b", ["precision=bfloat16"]),
        ("featuremaps run channels_last=", ["channels_last=true", "channels_last=false"]),
        ("featuremaps layers model=timm model.na", ["model.name="]),
        ("featuremaps run model=timm model.name=resn", []),
        ("featuremaps run no_such_key=1 model=sw", []),
        ("featuremaps info some", []),
    ],
)
def test_lines_are_completed(line: str, expected: list[str]) -> None:
    assert complete(line, COMMANDS) == expected


def test_an_empty_word_may_become_any_command_or_key() -> None:
    assert complete("featuremaps ", COMMANDS) == sorted(COMMANDS)
    keys = complete("featuremaps render ", COMMANDS)
    assert {"archive=", "render.", "renderers."} <= set(keys)
    assert not {"model=", "schema", "hydra."} & set(keys)


def test_unknown_shell() -> None:
    with pytest.raises(ConfigError, match=r"no shell 'zhs'; .*zsh"):
        script("zhs")


def test_usage(run: Run) -> None:
    assert run("completion", "bash")[1].endswith("-F _featuremaps featuremaps\n")
    assert run("completion")[0] == 2


_ASK = {
    "bash": 'eval "$(featuremaps completion bash)"; COMP_LINE="$1"; COMP_POINT=${#1}; '
    '_featuremaps; printf "%s\\n" "${COMPREPLY[@]}"',
    "fish": "featuremaps completion fish | source; complete -C $argv[1]",
    "zsh": 'compdef() { :; }; eval "$(featuremaps completion zsh)"; BUFFER=$1; CURSOR=${#1}; '
    "compadd() { print -l -- ${@:4}; }; _featuremaps",
}


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
    assert ask("featuremaps run model=resnet1") == {f"{head}resnet{n}" for n in (18, 101, 152)}
