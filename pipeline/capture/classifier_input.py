"""Classifier input: find the input of a model's classifier from the end of a forward pass.

The tensors of the last calls are held while one image goes through the model. The memory they share
shows which layer's output another layer takes, and which one the model returns.
"""

import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.capture.selector import LayerPath
from pipeline.capture.tensors import tensors_in

_HELD = 24  # calls; a classifier is followed by fewer (activation, pooling, flattening)
_FEATURES = ("pooler_output", "image_embeds", "last_hidden_state")
"""Outputs of transformers' models without a classifier, the most condensed first."""
_MAIN = ("logits", "out", *_FEATURES)
_NO_CLASSIFIER = re.compile("act|drop|norm|flat|pool|softmax")


class HeldCall(NamedTuple):
    """One call of a layer, with its tensors by key."""

    layer: str
    call: int
    module: nn.Module
    inputs: Mapping[str | None, Tensor]
    outputs: Mapping[str | None, Tensor]


class Ending:
    """The last calls of layers without submodules."""

    def __init__(self) -> None:
        self._calls: deque[tuple[HeldCall, list[int]]] = deque(maxlen=_HELD)
        self._counts: dict[str, int] = {}

    def add(self, call: HeldCall) -> None:
        """Hold a call and drop the oldest."""
        self._counts[call.layer] = call.call + 1
        self._calls.append((call, _versions(call)))

    def penultimate(self, model: str, returned: object) -> LayerPath | None:
        """Return the path of the classifier's input, or of the output without a classifier.

        None if the model returns several tensors and none of them is the obvious one.
        """
        tensors = {k: t for k, t in tensors_in(returned).items() if t.is_floating_point()}
        if None in tensors or len(tensors) == 1:
            key = next(iter(tensors))
        else:
            first = next(iter(tensors), None)
            vectors = [first] if first is not None and tensors[first].ndim == 2 else []
            names = [key for key in (*_MAIN, *vectors) if key in tensors]
            if not names:
                return None
            key = names[0]
        call = None if key in _FEATURES else self._classifier(tensors[key])
        if call is None:
            return LayerPath(layer=model, key=key)
        return LayerPath(
            layer=call.layer,
            call=call.call if self._counts[call.layer] > 1 else None,
            key=next(iter(call.inputs)),
            input=True,
        )

    def _classifier(self, result: Tensor) -> HeldCall | None:
        """Return the call whose weights produce the model's result, or None.

        Its output is the result, or is followed only by layers without weights and functions. If
        the result is the mean of several such calls, it is the first: the class token's. Of calls
        that return maps, it is the one whose maps are the result's, as others may be auxiliary.
        """
        memory, candidates, other = _memory((result,)), list[HeldCall](), False
        for call, versions in reversed(self._calls):
            connected = bool(memory & _memory(call.outputs.values()))
            # A sum in place may share memory with a layer before those of another branch.
            if connected and other and versions != _versions(call):
                continue
            if _weights(call.module):
                if connected and not candidates:
                    return call if _classifies(call, result, connected=True) else None
                maps = result.ndim == 4 and bool(candidates)
                if (maps or not other) and _classifies(call, result, connected=False):
                    candidates.append(call)
                elif not candidates or any(weight.ndim > 1 for weight in _weights(call.module)):
                    other = True
            replaced = isinstance(call.module, nn.Identity) and not _NO_CLASSIFIER.search(
                call.layer.rpartition(".")[2]
            )
            if connected and replaced:  # as in `model.fc = nn.Identity()`
                return None
            if connected:
                memory |= _memory(call.inputs.values())
        if result.ndim == 4 and candidates:
            return max(candidates, key=lambda call: _agreement(call, result))
        return candidates[-1] if candidates else None


def _memory(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _versions(call: HeldCall) -> list[int]:
    return [tensor._version for tensor in call.outputs.values() if not tensor.is_inference()]


def _agreement(call: HeldCall, result: Tensor) -> float:
    """Return the correlation of a call's maps with a result of another size."""
    maps = call.outputs[None].float()
    resized = F.adaptive_avg_pool2d(result.float(), (maps.shape[2], maps.shape[3]))
    pair = torch.stack([maps.flatten(), resized.flatten()])
    return float(torch.corrcoef(pair)[0, 1].nan_to_num(-1))


def _weights(module: nn.Module) -> list[Tensor]:
    """Return a layer's own parameters; a Linear layer's weight may be computed from others."""
    parameters: list[Tensor] = [*module.parameters(recurse=False)]
    return parameters or ([module.weight] if isinstance(module, nn.Linear) else [])


def _classifies(call: HeldCall, result: Tensor, *, connected: bool) -> bool:
    """Return whether only functions turn the output of a call with weights into the result.

    `connected`: whether layers without weights lead from that output to the result.
    """
    output = call.outputs.get(None)
    if output is None or not call.inputs:
        return False
    module = call.module
    if isinstance(module, nn.modules.conv._ConvNd):
        # A larger kernel makes feature maps, unless it covers its whole input.
        covers = {*module.kernel_size} == {1} or {*output.shape[2:]} == {1}
        same_size = result.ndim > 1 and output.shape[:2] == result.shape[:2]
        return covers and (connected or (same_size and module.in_channels != module.out_channels))
    matrices = [weight for weight in _weights(module) if weight.ndim == 2]
    if not any(output.shape[-1] in matrix.shape for matrix in matrices):
        return False
    if connected:
        return True
    # Scaled, passed through a softmax or averaged with another; not added to the input.
    widths = {size for matrix in matrices for size in matrix.shape}
    return output.ndim == 2 and output.shape == result.shape and len(widths) > 1
