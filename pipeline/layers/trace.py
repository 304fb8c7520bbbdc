"""Trace: every call of every layer in one forward pass, its shapes and types.

No activation is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.layers.capture import arguments, tensors_in


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One call of one layer in the dry batch.

    Attributes:
        layer: the module's first name.
        module_type: its class name.
        call: which call of that layer, 0-based.
        order: position among all calls, in the order in which they returned.
        parameters: numbers in the module and its children.
        inputs, outputs: key → (shape, dtype name), as `tensors_in` names them.
    """

    layer: str
    module_type: str
    call: int
    order: int
    parameters: int
    inputs: Mapping[str | None, tuple[tuple[int, ...], str]]
    outputs: Mapping[str | None, tuple[tuple[int, ...], str]]


def trace(model: nn.Module, images: Tensor) -> list[LayerCall]:
    """Run one forward pass and return every call of every layer, in execution order."""
    calls: list[LayerCall] = []
    counts: dict[str, int] = {}

    def shapes(value: object) -> dict[str | None, tuple[tuple[int, ...], str]]:
        return {
            key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for key, tensor in tensors_in(value).items()
        }

    def hook_for(name: str) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
        ) -> None:
            call = counts.get(name, 0)
            counts[name] = call + 1
            record = LayerCall(
                layer=name,
                module_type=type(module).__name__,
                call=call,
                order=len(calls),
                parameters=sum(parameter.numel() for parameter in module.parameters()),
                inputs=shapes(arguments(args, kwargs)),
                outputs=shapes(output),
            )
            calls.append(record)

        return hook

    with ExitStack() as hooks, torch.inference_mode():
        for name, module in model.named_modules():
            if name:
                handle = module.register_forward_hook(hook_for(name), with_kwargs=True)
                hooks.callback(handle.remove)
        model(images)
    return calls
