"""Class tokens and token grids of transformers' vision models, seen by changing image corners.

A change in one corner of the image changes most what stands in that corner of the grid: no
configuration is read to know where.
"""

from __future__ import annotations

import pytest
import torch

from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.model_trace import ModelTrace, trace_model
from pipeline.extraction.settings import Extraction
from pipeline.layers.capture import capture, forward
from pipeline.layers.selector import LayerSelector
from pipeline.models.transformers import TransformersModel

pytest.importorskip("transformers")
BLOCKS = LayerSelector(include=(r"re:.*(layers?|blocks?|embeddings)(\.\d+)*",))


def misplaced(traced: ModelTrace) -> tuple[dict[str, str], int]:
    """Return what is wrong of every block with a token grid, and how many blocks have one."""
    layers = traced.selection.select(BLOCKS)
    layers = [layer for layer in layers if "token" in layer.axes.names and layer.axes.grid]
    side = max(1, traced.image_shape[1] // 28)
    images = torch.rand(1, *traced.image_shape, generator=torch.Generator().manual_seed(0))
    images = images.repeat(4, 1, 1, 1)
    images[1, :, :side, :side] += 3
    images[2, :, :side, -side:] += 3
    images[3, :, -side:, -side:] += 3
    names = [layer.name for layer in layers]
    with torch.inference_mode(), capture(traced.model.module, names) as activations:
        forward(traced.model.module, images)
    wrong = {}
    for layer in layers:
        values = next(iter(activations.calls(layer.name).values())).float()
        if layer.axes.names[0] == "channel":
            values = values.transpose(1, 2)
        assert layer.axes.grid
        height, width = layer.axes.grid
        first, last = layer.axes.prefix_tokens, layer.axes.prefix_tokens + height * width - 1
        changed = (values[1:] - values[:1]).norm(dim=-1).argmax(1).tolist()
        if changed != [first, first + width - 1, last] or last != values.shape[1] - 1:
            wrong[layer.name] = f"{changed} changed most; grid {layer.axes.grid} from {first}"
    return wrong, len(layers)


def traced(kind: str, **arguments: object) -> ModelTrace:
    model = TransformersModel(name=kind, weights=None, arguments=arguments)
    return trace_model(Extraction(model=model, dataset=Synthetic(samples=1), device="cpu"))


SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64}


@pytest.mark.parametrize(
    ("kind", "arguments", "blocks"),
    [
        ("vit", SMALL, 3),
        ("dinov2", SMALL | {"image_size": 56}, 3),
        ("ijepa", SMALL, 3),
    ],
)
def test_grids_and_class_tokens(kind: str, arguments: dict[str, object], blocks: int) -> None:
    wrong, count = misplaced(traced(kind, **arguments))
    assert not wrong
    assert count >= blocks
