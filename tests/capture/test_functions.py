"""Function calls as layers, against a torch.fx interpretation of the same model."""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pipeline import capture
from pipeline.archive.reading.archive import Archive
from pipeline.capture.trace import record
from pipeline.cli.main import main
from pipeline.common.errors import LayerError
from pipeline.datasets.sequence import FromSequence
from pipeline.extraction.extract import extract
from tests.helpers.given_modules import extraction as given

NAMES = {operator.add: "add", operator.sub: "sub", operator.mul: "mul"}


class UNet(nn.Module):
    """Two levels, joined by interpolation, concatenation and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.up = nn.Conv2d(12, 4, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        high = F.relu(self.down(images))
        low = F.relu(self.deep(high))
        joined = torch.cat([high, F.interpolate(low, scale_factor=2, mode="bilinear")], 1)
        return (F.relu(self.up(joined)) + high) * 0.5 - 1


class Calls(fx.Interpreter):
    """Keeps the results of functions, methods and ReLU modules, by `LAYER@FUNCTION:CALL`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(fx.symbolic_trace(model))
        self.results: dict[str, Tensor] = {}
        self._counts = Counter[str]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op in ("call_function", "call_method"):
            *_, layer = ["output", *n.meta.get("nn_module_stack", {})]
            function = NAMES.get(n.target) or getattr(n.target, "__name__", n.target)
        elif n.op == "call_module" and isinstance(self.fetch_attr(n.target), nn.ReLU):
            layer, function = n.target, "relu"
        else:
            return result
        if function == "add" and "layer" in layer:
            function = "add_"  # fx cannot tell `x += y` from `x + y`
        name = f"{layer}@{function}"
        self.results[f"{name}:{self._counts[name]}"] = result.clone()
        self._counts[name] += 1
        return result


@pytest.mark.parametrize(
    ("build", "functions"),
    [
        (torchvision.models.resnet18, {"relu": 17, "add_": 8, "flatten": 1}),
        (torchvision.models.densenet121, {"relu": 121, "adaptive_avg_pool2d": 1}),
        (UNet, {"relu": 3, "cat": 1, "interpolate": 1, "add": 1, "mul": 1, "sub": 1}),
    ],
)
def test_functions_equal_an_fx_interpretation(
    build: type[nn.Module], functions: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        plain = model(images)
        interpreter = Calls(model)
        interpreter.run(images)
        names = [name for name in interpreter.results if re.split("[@:]", name)[1] in functions]
        with capture(model, names) as activations:
            output = model(images)
    assert torch.equal(output, plain)
    assert Counter(re.split("[@:]", name)[1] for name in names) == functions
    for name in names:
        assert torch.equal(activations[name], interpreter.results[name]), name


def test_a_call_is_copied_before_it_is_changed_in_place() -> None:
    class Model(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            scaled = images * 2
            scaled += 1
            return scaled.relu_()

    images = torch.tensor([[-1.0, 3.0]])
    paths = ["output@mul", "output@add_", "output@relu_"]
    model = Model()
    with capture(model, paths) as activations:
        model(images)
    assert [activations[path].tolist() for path in paths] == [[[-2, 6]], [[-1, 7]], [[0, 7]]]
    assert "forward" not in vars(model)


def test_reflected_operators_have_the_name_of_the_operator() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([1 - x, 3 / x, 2**x, 7 // x, 7 % x])

    calls = record(Model().eval(), torch.ones(3, 2), functions=True).functions
    names = ["sub", "div", "pow", "floordiv", "mod", "stack"]
    assert [call.layer for call in calls] == [f"output@{name}" for name in names]


def test_calls_belong_to_the_module_that_makes_them() -> None:
    inner = nn.Sequential(nn.ReLU(), nn.GELU())
    model = nn.Sequential(inner, nn.Softmax(-1))
    calls = record(model.eval(), torch.zeros(3, 4), functions=True).functions
    assert [call.layer for call in calls] == ["0.0@relu", "0.1@gelu", "1@softmax"]


class ClassToken(nn.Module):
    """A class token joins the patches of a channels-last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 2, 2), nn.LayerNorm(4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images.contiguous(memory_format=torch.channels_last))
        patches = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1)
        return self.norm(tokens)[:, 0]


def test_calls_by_hooks_are_not_the_models() -> None:
    torch.manual_seed(0)
    model, images = ClassToken().eval(), torch.rand(3, 3, 4, 4)
    calls = record(model, images, functions=True).functions
    called = ["contiguous", "flatten", "transpose", "expand", "cat", "getitem"]
    of_model = [call.layer for call in calls if call.layer.startswith("output@")]
    assert of_model == [f"output@{name}" for name in called]
    with capture(
        model, ["conv", "norm:in", "output@flatten", "output@add"], process=lambda _, x: x + 1
    ) as activations:
        model(images)
    assert list(activations) == ["conv", "norm:in", "output@flatten"]
    flat = model.conv(images).flatten(2)
    torch.testing.assert_close(activations["output@flatten"], flat + 1)


class Quantized(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.quantize_per_tensor(images, 0.1, 0, torch.quint8)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_values_are_read_without_a_call() -> None:
    model = nn.Sequential(Quantized(), nn.Identity(), torch.ao.nn.quantized.DeQuantize())
    calls = record(model.eval(), torch.rand(3, 4), functions=True).functions
    assert [call.layer for call in calls] == ["0@quantize_per_tensor", "2@dequantize"]


def test_an_exception_leaves_the_model_as_it_was() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("broken")

    model = nn.Sequential(nn.ReLU(), Broken())
    with capture(model, ["0@relu"]) as activations:
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                model(torch.ones(1, 2))
            assert activations["0@relu"].tolist() == [[1, 1]]
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.overrides._get_current_function_mode() is None


def test_functions_are_selected_only_by_patterns_that_name_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("model=tiny", "dataset=synthetic", "dataset.limit=2", f"hydra.run.dir={tmp_path}")
    include = "layers.include=['*','re:relu@relu|output@flatten']"
    assert main(("extract", *words, include, f"archive={tmp_path}/a")) == 0
    capfd.readouterr()
    with Archive.open(tmp_path / "a") as archive:
        functions = [name for name in archive.layers if "@" in name]
        assert functions == ["relu@relu:0", "relu@relu:1", "output@flatten"]
        for call in range(2):
            np.testing.assert_array_equal(
                archive.layers[f"relu@relu:{call}"][0], archive.layers[f"relu:{call}"][0]
            )
        assert not any("@" in name for name in (set(archive.layers) - set(functions)))
    assert main(("layers", *words[:1], "--functions", "--json")) == 0
    names = [row["name"] for row in json.loads(capfd.readouterr().out)["layers"]]
    assert {"conv1@conv2d", "relu@relu:1", "fc@linear"} <= set(names)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("conv1@conv3d", "no layer 'conv1@conv3d'; did you mean conv1@conv2d"),
        ("conv3@conv2d", "no layer 'conv3@conv2d'; did you mean conv2@conv2d"),
        ("*@sin", r"'\*@sin' matches no layer"),
        ("relu@relu:2", "relu@relu:2 is called 2 times"),
    ],
)
def test_unknown_functions_are_refused_with_the_nearest(
    pattern: str, problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(("layers", "model=tiny", f"layers.include=['{pattern}']")) == 2
    assert re.search(problem, capfd.readouterr().err)


def test_a_compiled_model_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("model=tiny", "dataset=synthetic", "layers.include=['relu@relu']", "compile=true")
    assert main(("extract", *words, f"archive={tmp_path}/a", f"hydra.run.dir={tmp_path}")) == 2
    assert "function calls of a compiled model cannot be captured" in capfd.readouterr().err


class Varying(nn.Module):
    """Adds once more to images that are black."""

    def forward(self, images: Tensor) -> Tensor:
        scores = images.mean((2, 3)) + 1
        return scores if images.std() > 0.1 else scores + 1


def test_calls_that_depend_on_the_images_are_refused(tmp_path: Path) -> None:
    black = FromSequence(items=[Image.new("RGB", (8, 8))] * 2)
    config = replace(given(tmp_path / "a", Varying(), "output@add"), dataset=black)
    with pytest.raises(LayerError, match="output@add was called 2 times in the batch at row 0"):
        extract(config)
