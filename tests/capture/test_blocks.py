"""`every_block`: the repeated units of models of many families, counted in their papers."""

from __future__ import annotations

import importlib
from collections import defaultdict

import pytest
import torch
from torch import nn

from pipeline.capture.blocks import blocks_of, children_of
from pipeline.capture.trace import LayerCall, record


def blocks(model: nn.Module, size: int = 224) -> list[str]:
    """Return the blocks of a model, whose forward pass runs without numbers."""
    calls = defaultdict[str, list[LayerCall]](list)
    meta = torch.zeros(2, 3, size, size, device="meta")
    trace = record(model.eval().to("meta"), meta)
    for call in (*trace.calls, trace.model):
        calls[call.layer].append(call)
    return blocks_of(model, calls)


FAMILIES = [
    ("swin_t", 12, "features.1.0", "features.7.1"),
    ("convnext_tiny", 18, "features.1.0", "features.7.2"),
    ("efficientnet_b0", 16, "features.1.0", "features.7.0"),
    ("efficientnet_v2_s", 40, "features.1.0", "features.6.14"),
    ("mobilenet_v2", 17, "features.1", "features.17"),
    ("mobilenet_v3_small", 11, "features.1", "features.11"),
    ("inception_v3", 11, "Mixed_5b", "Mixed_7c"),
    ("googlenet", 9, "inception3a", "inception5b"),
    ("shufflenet_v2_x1_0", 16, "stage2.0", "stage4.3"),
    ("squeezenet1_1", 8, "features.3", "features.12"),
    ("maxvit_t", 11, "blocks.0.layers.0", "blocks.3.layers.1"),
    ("mnasnet1_0", 16, "layers.8.0", "layers.13.0"),
]


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet50", 16, "layer1.0", "layer4.2"),
        ("densenet121", 4, "features.denseblock1", "features.denseblock4"),
        ("vit_b_16", 12, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11"),
        *(pytest.param(*row, marks=pytest.mark.broad) for row in FAMILIES),
    ],
)
def test_torchvision(name: str, count: int, first: str, last: str) -> None:
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    names = blocks(model, 299 if name == "inception_v3" else 224)
    assert (len(names), names[0], names[-1]) == (count, first, last)


@pytest.mark.broad
@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnetv2_50", 16, "stages.0.blocks.0", "stages.3.blocks.2"),
        ("regnetx_002", 13, "s1.b1", "s4.b7"),  # the first stages have one block each
        ("efficientnet_b0", 16, "blocks.0.0", "blocks.6.0"),  # the first of another class
        ("convnext_atto", 12, "stages.0.blocks.0", "stages.3.blocks.1"),
        ("vit_tiny_patch16_224", 12, "blocks.0", "blocks.11"),
        ("swin_tiny_patch4_window7_224", 12, "layers.0.blocks.0", "layers.3.blocks.1"),
        ("densenet121", 4, "features.denseblock1", "features.denseblock4"),
        ("mixer_s16_224", 8, "blocks.0", "blocks.7"),
        ("pvt_v2_b0", 8, "stages.0.blocks.0", "stages.3.blocks.1"),
        ("convmixer_768_32", 32, "blocks.0", "blocks.31"),  # of Sequential alone
    ],
)
def test_timm(name: str, count: int, first: str, last: str) -> None:
    import timm

    names = blocks(timm.create_model(name))
    assert (len(names), names[0], names[-1]) == (count, first, last)


@pytest.mark.broad
@pytest.mark.parametrize(
    ("model_type", "options", "count"),
    [
        ("vit", {"num_hidden_layers": 3}, 3),
        ("dinov2", {"num_hidden_layers": 3}, 3),
        ("clip_vision_model", {"num_hidden_layers": 3}, 3),
        ("swin", {"depths": [2, 3], "num_heads": [2, 4], "embed_dim": 16}, 5),
        ("convnext", {"depths": [2, 3], "hidden_sizes": [8, 16], "num_stages": 2}, 5),
        ("resnet", {"depths": [2, 3], "hidden_sizes": [8, 16], "num_stages": 2,
                    "embedding_size": 8}, 5),
    ],
)  # fmt: skip
def test_transformers(model_type: str, options: dict[str, object], count: int) -> None:
    transformers = importlib.import_module("transformers")
    config = transformers.CONFIG_MAPPING[model_type](**options)
    assert len(blocks(transformers.AutoModel.from_config(config))) == count


class Residual(nn.Module):
    """A block of two convolutions, in a stage or in a plain Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.second(self.first(x))
        return out


class Stage(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_own_models() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))
    assert blocks(plain, 8) == []
    assert children_of(plain) == ["0", "1", "2", "3"]
    assert children_of(nn.Sequential(plain)) == ["0.0", "0.1", "0.2", "0.3"]
    single = nn.Sequential(nn.Sequential(Residual()), nn.Sequential(Residual()))
    assert blocks(single, 8) == ["0.0", "1.0"]
    stages = nn.Sequential(Stage(2), Stage(1))
    assert blocks(stages, 8) == ["0.blocks.0", "0.blocks.1", "1.blocks.0"]
