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
        (b"# @package _global_\n- 1\n", "Cannot merge DictConfig with ListConfig"),
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
