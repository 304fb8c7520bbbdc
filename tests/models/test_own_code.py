"""Code of the user's own: scripts that parse arguments, print, leave; siblings; odd models."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.archive.reading.archive import Archive
from pipeline.capture.hooks import capture
from pipeline.common.errors import ConfigError
from pipeline.models.checkpoint import CheckpointModel
from pipeline.models.hub import HubModel
from tests.conftest import Run

NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 2, 3), nn.ReLU())
"""
Write = Callable[[str], list[str]]


@pytest.fixture(autouse=True)
def _import_path_is_restored() -> Iterator[None]:
    path = [*sys.path]
    yield
    sys.path[:] = path


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a script and returns the overrides that use its class `Net`."""

    def call(text: str) -> list[str]:
        (tmp_path / "train.py").write_text(text)
        return ["model=checkpoint", f"model.class_path={tmp_path}/train.py:Net",
                "model.weights=null", "model.transform.crop=8", "dataset=synthetic",
                "dataset.samples=2", "layers=all", "device=cpu"]  # fmt: skip

    return call


CHANGES = """
import os
from pathlib import Path

os.chdir(Path(__file__).parent)
"""


def test_code_that_changes_the_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds its files there; the paths of the configuration are still those of the caller."""
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "channels").write_text("2")
    reading = NET.replace("3, 2, 3", "3, int(Path('channels').read_text()), 3")
    (tmp_path / "repository" / "train.py").write_text(CHANGES + reading)
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).state_dict(), "weights.pt")
    code, _, _ = run(
        "extract", "model=checkpoint", "model.class_path=repository/train.py:Net",
        "model.weights=weights.pt", "model.transform.crop=8", "dataset=synthetic",
        "dataset.samples=2", "layers=all", "device=cpu", "archive=here",
    )  # fmt: skip
    assert code == 0
    assert Path.cwd() == tmp_path
    assert (tmp_path / "here" / "COMPLETE.json").is_file()


def test_code_that_changed_the_folder_when_it_was_imported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later job of a sweep does not import it again; its constructor still finds its files."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "channels").write_text("2")
    changes = "import os\nfrom pathlib import Path\n\nos.chdir('data')\n"
    reading = NET.replace("3, 2, 3", "3, int(Path('channels').read_text()), 3")
    (tmp_path / "imported_once.py").write_text(changes + reading)
    (tmp_path / "imports_it.py").write_text("from imported_once import Net\n")
    monkeypatch.chdir(tmp_path)
    for class_path in ("imported_once.Net", "imports_it.py:Net"):
        model = CheckpointModel(name="net", class_path=class_path, weights=None)
        for _ in range(2):
            assert len(model.load().module[0].weight) == 2
            assert Path.cwd() == tmp_path
        monkeypatch.delitem(sys.modules, "imported_once")


EXITS = {
    "at import": "import sys\nsys.exit()\n" + NET,
    "arguments at import": "import argparse\np = argparse.ArgumentParser()\n"
    "p.add_argument('--data', required=True)\np.parse_args()\n" + NET,
    "in the constructor": NET.replace("super()", "exit(0)\n        super()"),
    "in forward": NET + "\n    def forward(self, x):\n        raise SystemExit(0)\n",
    "quit in forward": NET + "\n    def forward(self, x):\n        quit()\n",
}


@pytest.mark.parametrize("where", EXITS)
@pytest.mark.parametrize("command", ["layers", pytest.param("extract", marks=pytest.mark.slow)])
def test_code_that_leaves_the_process_is_an_error(
    where: str, command: str, run: Run, write: Write
) -> None:
    code, out, err = run(command, *write(EXITS[where]))
    assert code == 2
    assert not out
    assert err.count("\n") == 1
    assert "sys.exit(" in err
    if where == "arguments at import":
        assert "the following arguments are required: --data" in err
        assert "if __name__ == '__main__'" in err


FAILS = {
    "to": "def to(self, *args, **options):\n        1 / 0",
    "eval": "def eval(self):\n        raise Odd",
    "parameters": "def parameters(self, recurse=True):\n        raise Odd",
    "named_modules": "def named_modules(self, *args, **options):\n        raise Odd",
    "__init__": "def __init__(self):\n        raise Odd",
    "forward": "def forward(self, images):\n        raise Odd",
    "forward of a text": "def forward(self, images):\n        raise Mute",
}


@pytest.mark.parametrize("where", FAILS)
def test_exceptions_of_any_kind_are_one_line(where: str, run: Run, write: Write) -> None:
    odd = (
        "class Odd(BaseException):\n    pass\n"
        "class Mute(Exception):\n    def __str__(self):\n        raise TypeError\n"
    )
    code, out, err = run("layers", *write(f"{odd}{NET}\n    {FAILS[where]}\n"))
    assert code == 2
    assert not out
    assert err.count("\n") == 1
    assert re.search("failed: (Odd|Mute|ZeroDivisionError)", err)


@pytest.mark.slow
def test_a_job_that_leaves_the_process_has_failed(run: Run, write: Write, tmp_path: Path) -> None:
    words = write(EXITS["in forward"])
    code, out, _ = run("extract", "-m", *words, "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep")
    assert code == 2
    assert out.count("failed: it called sys.exit(0)") == 2
    assert not [*(tmp_path / "sweep").rglob("COMPLETE.json")]


def test_a_script_sees_no_arguments_and_prints_beside_the_result(run: Run, write: Write) -> None:
    script = (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--width', default=5)\n"
        "WIDTH = p.parse_args().width\nprint('starting')\n"
        + NET.replace("(3, 2, 3)", "(3, WIDTH, 3)")
        + "\n    def forward(self, x):\n        print('forward')\n"
        "        return super().forward(x)\n"
    )
    code, out, err = run("layers", "--json", *write(script))
    assert code == 0, err
    assert json.loads(out)["layers"][0]["shape"][1] == 5
    assert "starting" in err


def test_siblings_are_imported_whenever_that_is(tmp_path: Path) -> None:
    for folder, width in (("one", 3), ("two", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sizes.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "late.py").write_text(f"FACTOR = {width}\n")
        (tmp_path / folder / "net.py").write_text(
            "from torch import nn\n\n\nclass Net(nn.Module):\n"
            "    def __init__(self):\n        from sizes import WIDTH\n"
            "        super().__init__()\n        self.conv = nn.Conv2d(3, WIDTH, 1)\n"
            "    def forward(self, x):\n        from late import FACTOR\n"
            "        return self.conv(x) * FACTOR\n"
        )
        module = CheckpointModel(class_path=f"{tmp_path}/{folder}/net.py:Net", weights=None)
        network = module.load().module
        images = torch.ones(1, 3, 2, 2)
        assert network.conv.out_channels == width
        assert torch.equal(network(images), network.conv(images) * width)


def test_relative_imports_of_a_package(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "sizes.py").write_text("WIDTH = 7\n")
    (tmp_path / "nets" / "own.py").write_text(
        "from .sizes import WIDTH\n" + NET.replace("(3, 2, 3)", "(3, WIDTH, 3)")
    )
    source = CheckpointModel(class_path=f"{tmp_path}/nets/own.py:Net", weights=None)
    assert source.load().module[0].out_channels == 7


def test_an_entry_point_that_a_hubconf_does_not_spell_out(tmp_path: Path) -> None:
    (tmp_path / "ournets.py").write_text(NET)
    (tmp_path / "hubconf.py").write_text(
        "from ournets import *\n"
        "for width in (4, 6):\n"
        "    globals()[f'net{width}'] = lambda width=width: nn.Conv2d(3, width, 1)\n"
    )
    repo = str(tmp_path)
    assert len(HubModel(repo=repo, name="Net", weights=None).load().module) == 2
    assert HubModel(repo=repo, name="net6", weights=None).load().module.out_channels == 6
    with pytest.raises(ConfigError, match="no class or function 'net5'; did you mean"):
        HubModel(repo=repo, name="net5", weights=None).load()


OWN_MODES = {
    "train with data": "def train(self, data, epochs):\n        1 / 0",
    "train by default": "def train(self, epochs=10):\n        1 / 0",
    "eval with a loader": "def eval(self, loader):\n        1 / 0",
    "eval that returns": "def eval(self):\n        return 0.9",
    "eval that fails": "def eval(self):\n        1 / 0",
    "eval that leaves": "def eval(self):\n        exit(0)",
}


@pytest.mark.parametrize("mode", OWN_MODES)
def test_a_train_or_eval_of_the_models_own(mode: str, tmp_path: Path, write: Write) -> None:
    write(NET.replace("nn.ReLU()", "nn.Dropout()") + f"\n    {OWN_MODES[mode]}\n")
    source = CheckpointModel(class_path=f"{tmp_path}/train.py:Net", weights=None)
    assert not [part for part in source.load().module.modules() if part.training]


def test_the_models_own_evaluation_mode_is_entered(tmp_path: Path, write: Write) -> None:
    write(NET + "\n    def train(self, mode=True):\n        self.merged = not mode\n"
          "        return super().train(mode)\n")  # fmt: skip
    source = CheckpointModel(class_path=f"{tmp_path}/train.py:Net", weights=None)
    assert source.load().module.merged


def test_a_float64_model(run: Run, write: Write, tmp_path: Path) -> None:
    code, _, err = run(
        "extract", *write(NET.replace("nn.ReLU())", "nn.ReLU())\n        self.double()"))
    )
    assert code == 0, err
    module = CheckpointModel(class_path=f"{tmp_path}/train.py:Net", weights=None).load().module
    with Archive.open(tmp_path / "run") as archive:
        layer, transform = archive.manifest.layers[0], archive.manifest
        image = archive.image(1).transpose(2, 0, 1) / 255.0
        mean, std = (np.array(v)[:, None, None] for v in (transform.mean, transform.std))
        assert layer.source_dtype == "float64"
        x = torch.from_numpy((image - mean) / std)[None]
        expected = nn.functional.conv2d(x, module[0].weight, module[0].bias)[0]
        np.testing.assert_allclose(archive.layers["0"][1], expected.numpy(), atol=1e-6)


def test_two_inputs_are_an_error_without_other_advice(run: Run, write: Write) -> None:
    code, _, err = run("layers", *write(NET + "\n    def forward(self, x, y):\n        return x\n"))
    assert code == 2
    assert "missing 1 required positional argument: 'y'" in err
    assert "model.transform" not in err


@dataclass
class Output:
    """What a layer returns."""

    logits: Tensor
    maps: list[Tensor]
    loss: None = None


class Pair(NamedTuple):
    """What another layer returns."""

    one: Tensor
    other: Output


class Layer(nn.Module):
    """A layer that returns an object."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def model_output(x: Tensor) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=x, hidden_states=(x, x + 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda x: Output(x, [x, x + 1]), "maps.1"),
        (lambda x: Pair(x, Output(x + 1, [])), "1.logits"),
        (lambda x: SimpleNamespace(a={"b": x + 1}), "a.b"),
        (lambda x: {"out": Output(x + 1, [])}, "out.logits"),
        (model_output, "hidden_states.1"),
    ],
)
def test_tensors_in_what_a_layer_returns(make: Callable[[Tensor], Any], key: str) -> None:
    network = nn.Sequential(Layer(make))
    x = torch.rand(2, 3)
    with capture(network, [f"0[{key}]"]) as activations:
        network(x)
    assert torch.equal(activations[f"0[{key}]"], x + 1)


def test_a_sparse_buffer_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 4, 3)\n"
        "        self.register_buffer('mask', torch.eye(4).to_sparse())\n"
        "    def forward(self, x):\n"
        "        return self.conv(x)\n"
    )
    loaded = CheckpointModel(class_path=f"{tmp_path}/net.py:Net", weights=None).load()
    assert loaded.module.mask.is_sparse


def test_a_buffer_that_the_model_resizes(run: Run, write: Write) -> None:
    code, _, err = run(
        "layers",
        *write(
            NET
            + """
        self.register_buffer("cache", __import__("torch").zeros(0))

    def forward(self, x):
        self.cache.resize_(x.shape).copy_(x)  # as an observer of quantization does
        return super().forward(self.cache)
"""
        ),
    )
    assert code == 0, err


def test_random_numbers_drawn_at_import_do_not_change_a_models_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drawing_net.py").write_text(f"import torch\n\ntorch.randn(3)\n{NET}")
    monkeypatch.syspath_prepend(tmp_path)
    source = CheckpointModel(class_path="drawing_net.Net", weights=None)
    assert source.load().state_sha256 == source.load().state_sha256  # imported by the first
