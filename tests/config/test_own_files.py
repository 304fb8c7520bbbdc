"""Files in the user's configuration folder that cannot be read are named, with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Run
from tests.helpers.tiny_words import TINY

_OVERRIDE = b"defaults:\n  - override /layers: all\n"
_HEADER = "begin the file with the line `# @package _global_`"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbf# @package _global_\n" + _OVERRIDE, "mine.yaml: a byte-order mark hides"),
        (b"# @package _global_\nseed: 4  # \xe4\n", "mine.yaml: not UTF-8"),
        (_OVERRIDE, f"experiment/mine: {_HEADER}"),
        (b"seed: 4\n", f"experiment: no such key; {_HEADER}, or choose from: model, dataset"),
        (b"- 1\n", f"experiment: no such key; {_HEADER}"),
        (b"# @package _global_\n- 1\n", "In 'experiment/mine': has a list where a mapping"),
        (b"defaults: 3\n", "experiment/mine: Invalid defaults list in"),
        (b"defaults: [3]\n", "experiment/mine: Unsupported type in defaults : int"),
        (
            b"# @package _global_\ndefaults:\n  - override /lens: x\n",
            "In 'experiment/mine': lens: this command has no such choice; remove it",
        ),
        (
            b"# @package _global_\nseed: ${oc.env:NOPE}\n",
            "error: seed: Environment variable 'NOPE' not found",
        ),
    ],
)
def test_files_that_hydra_misreads_are_refused(
    content: bytes, text: str, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_bytes(content)
    code, _, err = run("extract", "-cd", str(tmp_path / "conf"), *TINY, "experiment=mine")
    assert code == 2, err
    assert text in err
    assert "bug" not in err


def test_a_mistyped_model_of_the_user_is_suggested(tmp_path: Path, run: Run) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "retina_net.yaml").write_text("_target_: tiny\n")
    code, _, err = run("extract", "-cd", str(tmp_path / "conf"), "model=retina_nett")
    assert code == 2
    assert "unknown model 'retina_nett'; did you mean retina_net?" in err


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"model/mine": "mine"}, "model/mine → model/mine"),
        (
            {"model/mine": "other", "model/other": "last", "model/last": "other"},
            "model/other → model/last → model/other",
        ),
    ],
)
def test_a_defaults_list_that_includes_its_own_file_is_refused(
    files: dict[str, str], chain: str, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "model").mkdir()
    for name, included in files.items():
        (tmp_path / f"{name}.yaml").write_text(f"defaults:\n  - {included}\n")
    code, _, err = run("plan", "-cd", str(tmp_path), "model=mine")
    text = f"{chain}: the defaults list includes its own file; remove the entry"
    assert (code, err) == (2, f"featuremaps: error: {text}\n")


def test_groups_of_the_user_are_added_with_a_plus_and_overridden_without(
    tmp_path: Path, run: Run
) -> None:
    for folder in ("many", "experiment"):
        (tmp_path / folder).mkdir()
    for seed in (3, 4):
        (tmp_path / "many" / f"s{seed}.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /many: s3\n"
    )
    start = ("extract", "-cd", str(tmp_path), "--cfg", "job")
    code, _, err = run(*start, "many=s3")
    assert code == 2
    assert "many: this command has no such choice; add your own group with +many=s3 or s4" in err
    for words, seed in ((["+many=s4"], 4), (["experiment=mine"], 3),
                        (["experiment=mine", "many=s4"], 4)):  # fmt: skip
        code, out, err = run(*start, *words)
        assert code == 0, err
        assert f"\nseed: {seed}\n" in out


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("# @package _global_\nhydra: {sweeper: {params: {seed: '1,2'}}}\n",
         "sweep=mine: starts no sweep; add -m, or `mode: MULTIRUN` under hydra: in its file"),
        ("hydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2'}}}\n",
         f"sweep.hydra: no such key; {_HEADER}"),
    ],
)  # fmt: skip
def test_a_file_of_a_sweep_that_starts_none_is_refused(
    content: str, text: str, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(content)
    code, _, err = run("extract", "-cd", str(tmp_path), *TINY, "sweep=mine")
    assert (code, err) == (2, f"featuremaps: error: {text}\n")
