"""Checkpoints as they lie around: nested, wrapped, prefixed; all of them fit, or say what would."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import WeightsError
from pipeline.models.tiny import TinyModel, tiny_network
from pipeline.models.weights.files import read_state_dict
from pipeline.models.weights.state_dict import fit_state_dict
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


def saved(content: object, path: Path, **options: Any) -> TinyModel:
    """Return the tiny model with a checkpoint as its weights."""
    torch.save(content, path)
    return TinyModel(weights=str(path), **options)


def moved() -> dict[str, Tensor]:
    return {name: value + 1 for name, value in state().items()}


def pair(first: str, second: str) -> dict[str, Tensor]:
    """Return two networks under two prefixes."""
    return prefixed(first) | {second + name: value for name, value in moved().items()}


TWO_NETWORKS: dict[str, tuple[Any, str, str]] = {
    "MoCo": (
        {"state_dict": pair("module.encoder_q.", "module.encoder_k.")},
        "model.prefix=encoder_q",
        "model.prefix=encoder_k",
    ),
    "DINO": (
        {
            "student": prefixed("module.net."),
            "teacher": {"net." + k: v for k, v in moved().items()},
        },
        "model.prefix=student.net",
        "model.prefix=teacher.net",
    ),
    "timm": (
        {"state_dict": state(), "state_dict_ema": moved()},
        "model.prefix=state_dict",
        "model.prefix=state_dict_ema",
    ),
    "BasicSR": (
        {"params": state(), "params_ema": moved()},
        "model.prefix=params",
        "model.prefix=params_ema",
    ),
    "beside": (pair("", "ema."), "model.prefix=", "model.prefix=ema"),
    "list": ([state(), moved()], "model.prefix=0", "model.prefix=1"),
}


@pytest.mark.parametrize("name", TWO_NETWORKS)
def test_of_two_networks_that_fit_one_must_be_chosen(name: str, tmp_path: Path) -> None:
    content, first, second = TWO_NETWORKS[name]
    path = tmp_path / "weights.pt"
    with pytest.raises(WeightsError, match=f"2 networks .* set {first} or {second}$"):
        saved(content, path).load()
    for text, expected in ((first, state()), (second, moved())):
        option, _, value = text.removeprefix("model.").partition("=")
        loaded = saved(content, path, **{option: value}).load().module.state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    "content",
    [
        {**state(), **{f"module.{k}": v + 1 for k, v in state().items()}},
        {"model": state(), "module": {"model": {k: v + 1 for k, v in state().items()}}},
    ],
)
def test_two_values_of_one_name_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"two values of conv1\.weight, .* by .* or module;"):
        TinyModel(weights=str(tmp_path / "weights.pt")).load()


@pytest.mark.parametrize("option", ["key", "prefix"])
def test_options_of_a_file_need_one(option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option}: 'ema' .* model\.weights is null"):
        TinyModel(weights=None, **{option: "ema"})


def test_two_networks_with_the_same_values_or_one_that_fits_need_no_choice(tmp_path: Path) -> None:
    other = {"a.weight": torch.ones(2)}
    for content in ({"netG": state(), "netD": other}, {"model": state(), "ema": state()},
                    {**state(), "ema": moved()}):  # fmt: skip
        loaded = saved(content, tmp_path / "weights.pt").load().module.state_dict()
        assert torch.equal(loaded["fc.bias"], state()["fc.bias"])
    near = r"nothing in .* fits the model; the file contains netG\.a\.weight, netD\.a\.weight"
    with pytest.raises(WeightsError, match=near):
        saved({"netG": other, "netD": other}, tmp_path / "weights.pt").load()


def test_buffers_that_are_no_weights(tmp_path: Path) -> None:
    thop = state() | {"total_ops": torch.ones(1), "conv1.total_params": torch.ones(1)}
    averaged = prefixed("module.") | {"n_averaged": torch.tensor(3)}
    untracked = {k: v for k, v in state().items() if "num_batches_tracked" not in k}
    for content in (thop, averaged, untracked, {**state(), "epoch": 3, "arch": "tiny"}):
        loaded = saved(content, tmp_path / "weights.pt").load()
        assert torch.equal(loaded.module.state_dict()["fc.bias"], state()["fc.bias"])
        assert not loaded.missing_keys


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_and_undefined_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quantized = torch.quantize_per_tensor(state()["fc.bias"], 0.1, 0, torch.qint8)
    levels = quantized.int_repr()
    for bias in (quantized, levels, levels.int(), levels.to(torch.float8_e4m3fn)):
        with pytest.raises(WeightsError, match=r"fc\.bias in .* before quantization"):
            saved(state() | {"fc.bias": bias}, tmp_path / "weights.pt").load()
    saved(state() | {"fc.bias": state()["fc.bias"] * torch.nan}, tmp_path / "weights.pt").load()
    assert "NaN in 1 tensor of" in caplog.text
    assert "fc.bias" in caplog.text


def test_tied_weights_that_safetensors_stores_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

    module, other = Tied(), Tied()
    save_model(module, str(tmp_path / "weights.safetensors"))
    fit_state_dict(other, read_state_dict(tmp_path / "weights.safetensors"), origin="it")
    assert torch.equal(other.two.weight, module.one.weight)


def test_a_prefix_that_nearly_fits_is_named() -> None:
    almost = prefixed("encoder.")
    del almost["encoder.fc.bias"]
    near = r"\(tensors that do with model\.prefix=encoder: 10 of 11\); missing: fc\.bias$"
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
    assert f"{tmp_path}/code/own_nat.py does not exist" in err
    code, _, err = run("layers", *words[:-1], "model.class_path=own_net:Net")
    assert code == 2
    assert err.endswith("own_net does not exist; for a module, use own_net.Net\n")
    code, _, err = run("layers", *words[:-1], "model.class_path=own_net.Net")
    assert f"(searched: {tmp_path} and the installed packages)" in err


@pytest.mark.parametrize("line", ["from pipeline.blocks import Net", "from pipeline import Net"])
def test_a_package_of_the_same_name_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "blocks.py").write_text("from torch.nn import Identity as Net\n")
    (tmp_path / "net.py").write_text(line)
    monkeypatch.chdir(tmp_path)
    words = ("model=checkpoint", "model.weights=null", "model.class_path=net.py:Net")
    code, _, err = run("layers", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert err.endswith("the package `pipeline` is featuremaps' own: rename yours\n")


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
