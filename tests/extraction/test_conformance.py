"""What is stored is what the layer returned: every layer of many models, compared exactly."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.conformance import compare
from tests.helpers.timm_families import FAMILIES

REPRESENTATIVE = (
    "alexnet", "vgg11_bn", "resnet18", "densenet121", "googlenet", "inception_v3",
    "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "swin_t",
    "maxvit_t", "vit_b_32", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5",
)  # fmt: skip
FEW_FAMILIES = (
    "test_vit", "swin_tiny_patch4_window7_224", "convnext_atto_rms", "mobilevit_xxs",
    "xcit_nano_12_p8_224", "edgenext_xx_small", "levit_128s", "pvt_v2_b0",
    "deit_tiny_distilled_patch16_224", "resnet10t", "test_mambaout", "starnet_s050",
)  # fmt: skip


def torchvision_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a model with random weights, and an image as small as it takes."""
    from torchvision import models

    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **arguments).eval()
    size = {"inception_v3": 80, "maxvit_t": 224, "alexnet": 64}.get(name, 64)
    if name.startswith("vit_"):
        size = 224
    return model, torch.randn(1, 3, size, size)


def timm_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    import timm

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, pretrained=False).eval()
        size = timm.data.resolve_model_data_config(model)["input_size"]
    return model, torch.randn(1, *size)


def check(model: nn.Module, images: torch.Tensor, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the models' own code
        count, wrong = compare(model, images)
    print(f"conformance: {name}: {count} activations compared, {len(wrong)} mismatches")  # noqa: T201
    assert count > 5
    assert not wrong


def slow_but(default: tuple[str, ...], names: tuple[str, ...]) -> list[Any]:
    """Return names as parameters, those marked slow that are not tested by default."""
    return [pytest.param(n, marks=[] if n in default else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", slow_but(("resnet18", "densenet121"), REPRESENTATIVE))
def test_torchvision_models(name: str) -> None:
    check(*torchvision_model(name), name)


@pytest.mark.parametrize("name", slow_but(("test_vit",), FEW_FAMILIES))
def test_timm_families(name: str) -> None:
    check(*timm_model(name), name)


def _others() -> list[str]:
    from torchvision import models

    return [name for name in models.list_models(module=models) if name not in REPRESENTATIVE]


@pytest.mark.broad
@pytest.mark.parametrize("name", _others())
def test_every_other_torchvision_model(name: str) -> None:
    check(*torchvision_model(name), name)


@pytest.mark.broad
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FEW_FAMILIES])
def test_every_other_timm_family(name: str) -> None:
    check(*timm_model(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "densenet121"])
def test_a_capture_that_keeps_references_is_caught(name: str) -> None:
    """The same comparison finds a broken capture: in-place ReLUs overwrite what it refers to."""
    model, images = torchvision_model(name)
    _, wrong = compare(model, images, process=lambda _address, output: output.detach())
    assert len(wrong) > 5
