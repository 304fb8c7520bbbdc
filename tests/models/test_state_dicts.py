"""State dicts keep the versions of their modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest
import torch

from pipeline.models.checkpoint import CheckpointModel
from pipeline.models.torchvision import TorchvisionModel


def round_trip(name: str, ending: str, folder: Path) -> None:
    """Save a torchvision model's state dict and load it from its path."""
    from safetensors.torch import save_file
    from torchvision import models

    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    backbone = {"weights_backbone": None} if any(
        part in name for part in ("rcnn", "retinanet", "fcos", "ssd", "deeplab", "fcn", "lraspp")
    ) else {}  # fmt: skip
    torch.manual_seed(1)
    module = models.get_model(name, weights=None, **arguments, **backbone)
    path = folder / f"w{ending}"
    state = module.state_dict()
    if ending == ".safetensors":
        save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = TorchvisionModel(name=name, weights=str(path), arguments=arguments).load()
    for key, value in loaded.module.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0, equal_nan=True)
    path.unlink()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_state_dicts_keep_their_versions(tmp_path: Path, ending: str) -> None:
    round_trip("mnasnet0_5", ending, tmp_path)
    round_trip("shufflenet_v2_x0_5", ending, tmp_path)


@pytest.mark.broad
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_every_torchvision_models_own_state_dict_loads(tmp_path: Path, ending: str) -> None:
    from torchvision import models

    failed = {}
    for name in models.list_models():
        if name.startswith("quantized_"):
            continue  # not floating-point models: their state dicts hold packed objects
        try:
            round_trip(name, ending, tmp_path)
        except Exception as error:  # noqa: BLE001 - all of them are shown at once
            failed[name] = f"{type(error).__name__}: {error}"
    assert not failed


class Scaled(torch.Tensor):
    """Integers and their scale, which compute as floats: torchao's quantized weights."""

    values: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor, scale: torch.Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values: torch.Tensor, scale: torch.Tensor) -> None:
        self.values, self.scale = values, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, function: Any, kinds: Any, args: Any, kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        if function not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default,
                            torch.ops.aten.t.default):  # fmt: skip
            raise NotImplementedError(function)
        plain = [x.values * x.scale if isinstance(x, cls) else x for x in args]
        return function(*plain, **(kwargs or {}))


class Quantized(torch.nn.Sequential):
    def __init__(self, scale: float = 0.5) -> None:
        linear = torch.nn.Linear(8 * 8 * 3, 4)
        integers = torch.arange(-384, 384).reshape(4, 192).to(torch.int8)
        weight = Scaled(integers, torch.tensor(scale))
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        super().__init__(torch.nn.Flatten(), linear)


def test_weights_that_wrap_other_tensors() -> None:
    digests = set()
    for scale in (0.5, 0.25):
        source = CheckpointModel(
            class_path=f"{__file__}:Quantized", weights=None, arguments={"scale": scale}
        )
        loaded = source.load()
        digests.add(loaded.state_sha256)
        linear = loaded.module[1]
        with torch.no_grad():
            images = torch.rand(2, 3, 8, 8)
            weight = torch.arange(-384, 384).reshape(4, 192).to(torch.int8) * scale
            expected = images.flatten(1) @ weight.T + linear.bias
            assert torch.allclose(loaded.module(images), expected, rtol=1e-5, atol=1e-3)
    assert len(digests) == 2
