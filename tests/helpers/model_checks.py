"""What must hold of any model: tokens stand where they are said to, and no random layer passes.

Where a token stands is seen by changing one corner of the image; no configuration is read to know.
"""

import re
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from pipeline.capture.hooks import capture, forward
from pipeline.capture.selector import LayerPath, LayerSelector
from pipeline.common.errors import LayerError
from pipeline.extraction.dummy_forward import ModelTrace
from pipeline.extraction.missing_weights import refuse_random_layers

BLOCK = re.compile(r"(.*\.)?(layers?|blocks?|embeddings)(\.\d+)*")
EVERY = LayerSelector(include=("re:.*",))


def misplaced_tokens(traced: ModelTrace, *, mixed: bool = False) -> tuple[dict[str, str], int]:
    """Return what is wrong of layers with tokens, and how many have a grid that is right.

    The corner that changes an image most changes the same corner of the grid most, and in the first
    layer that holds them no prefix token.

    Args:
        traced: the model on its device.
        mixed: whether its random weights carry a change to tokens far away: then only the first
            grid is looked at.
    """
    layers = [x for x in traced.selection.select(EVERY) if "token" in x.axes.names]
    if not layers:
        return {}, 0
    side = max(1, traced.image_shape[1] // 28)
    images = torch.rand(1, *traced.image_shape, generator=torch.Generator().manual_seed(0))
    images = images.repeat(4, 1, 1, 1)
    images[1, :, :side, :side] += 3
    images[2, :, :side, -side:] += 3
    images[3, :, -side:, -side:] += 3
    names = [layer.name for layer in layers]
    with torch.inference_mode(), capture(traced.model.module, names) as activations:
        forward(traced.model.module, images)
    wrong, right, joined = {}, 0, False
    seen: set[object] = set()
    for layer in layers:
        kind = (layer.axes.prefix_tokens, layer.axes.grid)
        if layer.axes.grid is None or (mixed and right):
            continue
        if kind in seen and not BLOCK.fullmatch(layer.name):
            continue  # attention alone carries a change anywhere
        seen.add(kind)
        values = next(iter(activations.calls(layer.name).values())).float()
        if layer.axes.names[0] == "channel":
            values = values.transpose(1, 2)
        prefix, (height, width) = layer.axes.prefix_tokens, layer.axes.grid
        changes = (values[1:] - values[:1]).norm(dim=-1)
        if prefix and not joined:
            joined = True
            if changes[:, :prefix].max() > 1e-4 * changes.max():
                wrong[layer.name] = f"{prefix} prefix tokens move with the image"
        strongest = [divmod(n, width) for n in (changes.argmax(1) - prefix).tolist()]
        corners = [(0, 0), (0, width - 1), (height - 1, width - 1)]
        # Padding weakens the edges of a large grid. A wrong prefix would wrap around them.
        near = 2 * (max(height, width) // 16)
        pairs = zip(strongest, corners, strict=True)
        off = max(abs(a - c) + abs(b - d) for (a, b), (c, d) in pairs)
        off = off if height > 1 else 0  # a strip claims no places
        if off > near or values.shape[1] != prefix + height * width:
            wrong[layer.name] = f"{strongest} changed most; grid {height}×{width} behind {prefix}"
        right += layer.name not in wrong
    return wrong, right


def check_random_layers(
    traced: ModelTrace,
    state: Mapping[str, Tensor],
    retrace: Callable[[dict[str, Tensor]], ModelTrace],
) -> None:
    """Take one parameter out of a model's file: it is reported, and its layer refused.

    Args:
        traced: the model with all of its weights.
        state: what the file holds; its names may differ from the model's.
        retrace: trace the model again with another state dict.
    """
    assert not traced.model.missing_keys
    module = traced.model.module
    modules, parameters = dict(module.named_modules()), dict(module.named_parameters())
    selectable = {LayerPath.parse(x.name).layer for x in traced.selection.select(EVERY)}
    called = [
        call.layer
        for call in traced.trace.calls
        if call.layer in selectable and not any(modules[call.layer].children())
    ]
    names = [name for name in parameters if name.rpartition(".")[0] in called]
    matches = [
        [
            key
            for key, value in state.items()
            if f".{key}".endswith(f".{name}") and torch.equal(value, parameters[name])
        ]
        for name in names
    ]
    alike = [keys[0] for keys in matches if len(keys) == 1]  # a text tower's may be the same
    lacking = alike[-1] if alike else [key for key in state if key.endswith(".weight")][-1]
    retraced = retrace({key: value for key, value in state.items() if key != lacking})
    (name,) = retraced.model.missing_keys
    assert name.rpartition(".")[2] == lacking.rpartition(".")[2]
    assert retraced.model.module.state_dict()[name].shape == state[lacking].shape

    def refuse(layer: str) -> None:
        selector = LayerSelector(include=(layer,))
        refuse_random_layers(retraced, retraced.selection.select(selector), seed=0)

    layer = name.rpartition(".")[0]
    if called[0] != layer:
        refuse(called[0])
    with pytest.raises(LayerError, match=r"depends? on") as refused:
        refuse(layer)
    assert name in str(refused.value)
