"""Hydra's own words: flags, folders and null, for every command that takes overrides."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.cli.override_commands import command_line
from tests.conftest import Run

TINY = ("model=tiny", "dataset=synthetic", "dataset.samples=2", "device=cpu")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with an experiment, and with one that is no YAML."""
    folder = tmp_path / "my conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nlayers:\n  include: [conv2]\n")
    (folder / "broken.yaml").write_text("layers:\n  include: [conv2\n")
    return tmp_path / "my conf"


@pytest.mark.slow
@pytest.mark.parametrize("word", ["experiment=mine", "+experiment=mine"])
@pytest.mark.parametrize("flag", ["--config-dir", "-cd"])
def test_a_folder_of_ones_own_works_for_every_command(
    run: Run, mine: Path, tmp_path: Path, word: str, flag: str
) -> None:
    for flags in ((flag, str(mine)), (f"{flag}={mine}",)):
        code, out, err = run("layers", "model=tiny", *flags, word, "--json")
        assert code == 0, err
        assert [row["name"] for row in json.loads(out)["layers"]] == ["conv2"]
        code, out, err = run("plan", *TINY, word, *flags, "--json")
        assert code == 0, err
        assert [layer["name"] for layer in json.loads(out)["layers"]] == ["conv2"]
    assert run("extract", *TINY, flag, str(mine), word)[0] == 0
    with Archive.open(tmp_path / "run") as archive:
        assert list(archive.layers) == ["conv2"]


@pytest.mark.parametrize("command", ["run", "layers", "plan"])
def test_what_is_no_yaml_is_named_with_its_line(run: Run, mine: Path, command: str) -> None:
    code, _, err = run(command, *TINY, "--config-dir", str(mine), "experiment=broken")
    assert code == 2
    assert f"{mine}/experiment/broken.yaml, line 3: invalid YAML: " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("model=null", "model=null: is required; choose from: alexnet"),
        ("layers=null", "layers=null: is required; choose from: all"),
        ("dataset=null", "dataset=null: is required; choose from: csv"),
        ("renderers=null", "renderers: no renderer is selected; .*featuremaps extract"),
    ],
)
def test_null_that_cannot_be_is_answered(run: Run, word: str, text: str) -> None:
    import re

    code, _, err = run("run", *(other for other in TINY if word[:4] not in other), word)
    assert code == 2
    assert re.search(text, err)


def test_null_that_can_be_is_taken(run: Run, tmp_path: Path) -> None:
    words = ("reduction=null", "experiment=null", "launch=null", "sweep=null", "storage=null",
             "loader=null", "shard=null")  # fmt: skip
    code, _, err = run("extract", *TINY, *words)
    assert code == 0, err
    with Archive.open(tmp_path / "run") as archive:
        assert archive.layers["conv1"].entry.reduction == "none"


def test_the_configuration_is_shown_and_resolved(run: Run) -> None:
    for command in ("extract", "layers", "plan"):
        code, out, err = run(command, *TINY, "--cfg", "job", "--resolve")
        assert code == 0, err
        assert "_target_: synthetic" in out
        assert "${" not in out


@pytest.mark.parametrize("command", ["extract", "layers"])
@pytest.mark.parametrize("flags", [("-m", "--cfg", "job"), ("--info", "all", "--multirun")])
def test_flags_that_exclude_each_other(run: Run, command: str, flags: tuple[str, ...]) -> None:
    code, _, err = run(command, *TINY, *flags)
    assert code == 2
    assert "Only one of --run, --multirun, --cfg" in err
    assert "defect" not in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("mean=0.5",), "mean has length 1, std has length 3; set both"),
        (("std=0.5",), "mean has length 3, std has length 1; set both"),
        (("mean=0.5", "std=0.5", "bgr=true"), "bgr needs 3 channels"),
    ],
)
def test_levels_of_different_channels(run: Run, words: tuple[str, ...], text: str) -> None:
    code, _, err = run("layers", *TINY, *(f"model.transform.{word}" for word in words))
    assert code == 2
    assert f"error: model.transform: {text}" in err


def test_a_folder_in_place_of_the_packaged_one(run: Run, tmp_path: Path) -> None:
    code, _, err = run("extract", "-cp", str(tmp_path / "none"), "-cn", "x")
    assert code == 2
    assert "add your own configurations with --config-dir FOLDER" in err


def test_flags_of_no_meaning_are_named(run: Run) -> None:
    code, _, err = run("layers", "model=tiny", "--al")
    assert code == 2
    assert "layers: unknown option --al; did you mean --all?" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("run --bogus", "run: unknown option --bogus; choose from: --help, --cfg"),
        ("layers model=tiny -x", "layers: unknown option -x; choose from: --help"),
        ("extract --multi", "extract: unknown option --multi; did you mean --multirun?"),
        ("extract --version", "extract: unknown option --version"),
        ("extract --cfg none", "extract: argument --cfg/-c: invalid choice: 'none'"),
        ("plan --resolve", "plan: --resolve and --package need --cfg"),
        ("extract --cfg job --package none", "--package: the configuration has no 'none'"),
        ("layers -cd nosuchfolder", "nosuchfolder: no such folder"),
    ],
)
def test_wrong_flags_are_named(run: Run, words: str, text: str) -> None:
    code, _, err = run(*words.split())
    assert code == 2, err
    assert text in err.splitlines()[-1]


@pytest.mark.parametrize("flags", [("--info", "searchpath"), ("--info=searchpath",)])
def test_hydra_prints_where_it_searches(run: Run, mine: Path, flags: tuple[str, ...]) -> None:
    code, out, err = run("extract", *flags, "model=tiny", "-cd", str(mine))
    assert code == 0, err
    assert f"| command line | file://{mine}" in out


def test_a_file_of_ones_own_may_start_a_sweep(run: Run, mine: Path, tmp_path: Path) -> None:
    (mine / "experiment" / "swept.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
    )
    words = (*TINY, "-cd", str(mine), "experiment=swept", f"hydra.sweep.dir={tmp_path / 'swept'}")
    code, out, err = run("extract", *words)
    assert code == 0, err
    assert "(2 of 2 jobs done)" in out


@pytest.mark.parametrize(
    ("word", "jobs"),
    [
        ("reduction=glob(spatial_*)", ["spatial_max", "spatial_mean"]),
        ("+hydra.sweeper.params.seed='1,2'", ["1", "2"]),
    ],
)
def test_hydras_words_for_many_values_start_jobs(
    run: Run, tmp_path: Path, word: str, jobs: list[str]
) -> None:
    words = (*TINY, "layers.include=[conv1]", word, f"hydra.sweep.dir={tmp_path / 'many'}")
    code, _, err = run("extract", "-m", *words)
    assert code == 0, err
    names = [job["job"] for job in json.loads((tmp_path / "many" / "jobs.json").read_text())]
    assert [name.partition("=")[2] for name in names] == jobs


def test_a_list_that_is_repeated_in_a_sweep_is_refused(run: Run) -> None:
    assert run("run", "-m", *TINY, "renderers=[grid]", "renderers=[pca],[grid]")[0] == 2


def test_python_3_14_can_build_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses a help that is not text; Hydra's own parser has one."""
    add = argparse.ArgumentParser.add_argument

    def checked(parser: Any, *flags: str, help: str | None = None, **options: Any) -> Any:
        assert help is None or isinstance(help, str)
        return add(parser, *flags, help=help, **options)

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", checked)
    assert command_line("run", ["seed=1", "-m"], "run").multirun
