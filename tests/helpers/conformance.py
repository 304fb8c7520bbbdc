"""The conformance comparison: is what capture stores what the layer returned?

Every call of every layer is applied again, alone, to a clone of the input that it was given, and
the result is compared exactly with the captured activation. Nothing of `pipeline.capture.hooks`
is used to record the inputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.capture.hooks import capture
from pipeline.capture.selector import LayerPath
from pipeline.capture.tensors import tensors_in
from pipeline.capture.trace import record


def cloned(value: Any, memo: dict[int, Tensor] | None = None) -> Any:
    """Return nested arguments with every tensor cloned; the same tensor twice stays the same one.

    (Attention takes another path where query, key and value are one tensor.)
    """
    memo = {} if memo is None else memo
    if isinstance(value, Tensor):
        if id(value) not in memo:
            memo[id(value)] = same_strides(value)
        return memo[id(value)]
    if isinstance(value, dict):
        return {key: cloned(item, memo) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [cloned(item, memo) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def same_strides(tensor: Tensor) -> Tensor:
    """Return a clone with the same strides: kernels round differently for others."""
    if 0 in tensor.stride() or tensor.numel() == 0:
        return tensor.clone()
    return torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)


def compare(
    model: nn.Module, images: Tensor, process: Callable[[str, Tensor], Tensor] | None = None
) -> tuple[int, list[str]]:
    """Return how many activations were compared, and the addresses of those that differ.

    Args:
        model: in evaluation mode.
        images: one batch.
        process: what the capture does with an output, instead of copying it.
    """
    calls = record(model, images).calls
    times = {call.layer: 1 + call.call for call in calls}
    expected = {
        str(LayerPath(layer=c.layer, call=c.call if times[c.layer] > 1 else None, key=key)): (
            c,
            key,
        )
        for c in calls
        for key in c.outputs
    }
    given: dict[tuple[str, int], tuple[Any, Any]] = {}
    seen: dict[str, int] = {}
    modules = {name: module for name, module in model.named_modules() if name}

    def remember(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            call = seen.get(name, 0)
            seen[name] = call + 1
            given[name, call] = cloned((args, kwargs))

        return hook

    handles = [
        m.register_forward_pre_hook(remember(n), with_kwargs=True) for n, m in modules.items()
    ]
    try:
        with torch.inference_mode(), capture(model, list(expected), process=process) as activations:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    wrong = []
    with torch.inference_mode():
        for text, (call, key) in expected.items():
            args, kwargs = cloned(given[call.layer, call.call])
            again = tensors_in(modules[call.layer](*args, **kwargs))[key]
            if not torch.equal(again.nan_to_num(), activations[text].nan_to_num()):
                wrong.append(text)
    return len(expected), wrong
