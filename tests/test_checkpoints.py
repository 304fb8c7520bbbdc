"""Checkpoints as they lie around: nested, wrapped, prefixed; all of them fit, or say what would."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.archive.reader import Archive
from pipeline.foundation.errors import WeightsError
from pipeline.models.state_dict import fit_state_dict
from pipeline.models.tiny import TinyModel, tiny_network
from pipeline.models.weight_files import read_state_dict
from tests.conftest import Run


def state() -> dict[str, Tensor]:
    """Return weights of the tiny model that are not its own."""
    torch.manual_seed(9)
    return tiny_network().state_dict()


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state().items()}


CHECKPOINTS: dict[str, Any] = {
    "plain": state(),
    "lightning": {"state_dict": {**prefixed("model."), "loss.weight": torch.ones(3)}, "epoch": 3},
    "compiled": prefixed("_orig_mod."),
    "compiled within lightning": {"state_dict": prefixed("model._orig_mod.")},
    "parallel": {"model": prefixed("module.")},
    "parallel within": {"model_state": {f"net.module.{k}": v for k, v in state().items()}},
    "a part compiled": {k.replace("bn1.", "bn1._orig_mod."): v for k, v in state().items()},
    "net": {"net": prefixed("net."), "optimizer": {"state": {}}},
    "backbone": {"model_state_dict": prefixed("backbone.")},
    "averaged": {"ema_state_dict": state()},
    "nested": {"model": {"state_dict": state()}},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_are_found_and_fitted(name: str, tmp_path: Path) -> None:
    torch.save(CHECKPOINTS[name], tmp_path / "weights.ckpt")
    loaded = TinyModel(weights=str(tmp_path / "weights.ckpt")).load().module.state_dict()
    for key, value in state().items():
        assert torch.equal(loaded[key], value), key


def test_what_is_taken_off_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"state_dict": prefixed("model.")}, tmp_path / "weights.ckpt")
    with caplog.at_level(logging.INFO, "pipeline"):
        TinyModel(weights=str(tmp_path / "weights.ckpt")).load()
    assert "removed the prefix 'model.' from the names" in caplog.text


def test_key_and_prefix_choose(tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in state().items()}
    both = prefixed("student.") | {f"teacher.{name}": value for name, value in other.items()}
    content = {"state_dict": both, "ema": {"weights": other}}
    torch.save(content, tmp_path / "weights.pt")
    path = str(tmp_path / "weights.pt")
    for options, expected in (
        ({"prefix": "teacher"}, other), ({"prefix": "student."}, state()),
        ({"key": "ema.weights"}, other),
    ):  # fmt: skip
        source = TinyModel(weights=path, **options)  # type: ignore[arg-type]
        loaded = source.load().module.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    with pytest.raises(WeightsError, match=r"model.key: .* has no 'emo'; did you mean ema"):
        read_state_dict(Path(path), "emo")


def test_a_prefix_that_nearly_fits_is_named() -> None:
    almost = prefixed("encoder.")
    del almost["encoder.fc.bias"]
    near = r"missing: .*; with model.prefix=encoder\. 10 of 11 weights would fit"
    with pytest.raises(WeightsError, match=near):
        fit_state_dict(tiny_network(), almost, origin="it")


def test_a_model_that_wraps_what_was_saved() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = tiny_network()

    module = Wrapped()
    fit_state_dict(module, state(), origin="it")
    assert torch.equal(module.backbone.state_dict()["fc.bias"], state()["fc.bias"])


def test_a_model_whose_own_names_have_a_wrappers_parts() -> None:
    module = nn.ModuleDict({"module": nn.Linear(2, 2)})
    fit_state_dict(module, {f"net.{k}": v for k, v in module.state_dict().items()}, origin="it")


def test_a_class_in_a_file_by_its_path(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "sizes.py").write_text("WIDTH = 5\n")
    (folder / "own_net.py").write_text(
        "from torch import nn\nfrom sizes import WIDTH\n\n\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, WIDTH, 3), nn.ReLU())\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["model=checkpoint", "model.weights=null", "model.transform.crop=16",
             "model.class_path=code/own_net.py:Net"]  # fmt: skip
    for command in ("layers", "plan"):
        code, out, err = run(command, *words)
        assert code == 0, err
        assert "5×14×14" in out
    more = ["dataset=synthetic", "dataset.samples=2", "device=cpu", "archive=a"]
    assert run("extract", *words, *more)[0] == 0
    with Archive.open("a") as archive:
        assert archive.manifest.model_name == "Net"
    code, _, err = run("layers", *words[:-1], "model.class_path=code/own_nat.py:Net")
    assert code == 2
    assert f"there is no file {tmp_path}/code/own_nat.py" in err
    code, _, err = run("layers", *words[:-1], "model.class_path=own_net.Net")
    assert f"(searched: {tmp_path} and the installed packages)" in err


def test_inputs_of_another_size_or_colour_are_answered_with_the_keys_to_set(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grey_net.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["model=checkpoint", "model.class_path=grey_net.py:Net", "model.weights=null",
             "dataset=synthetic", "dataset.samples=2", "device=cpu"]  # fmt: skip
    code, _, err = run("extract", *words)
    assert code == 2
    assert err.count("\n") == 1
    for key in ("resize", "crop", "mean", "std"):
        assert f"model.transform.{key}" in err
    right = [f"model.transform.{key}={value}" for key, value in
             (("resize", 28), ("crop", 28), ("mean", 0.5), ("std", 0.5))]  # fmt: skip
    code, _, err = run("extract", *words, *right)
    assert code == 0, err
    with Archive.open(tmp_path / "run") as archive:
        assert archive.manifest.image_shape == (1, 28, 28)
