"""Tensors of a layer's inputs and outputs, whatever structure they are in."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def tensors_in(value: object) -> dict[str | None, Tensor]:
    """Return the tensors of a layer's output or input by key.

    A plain tensor has the key None; an element of a tuple, list or dict its position or key; a
    field of a dataclass, attrs class or namespace its name. Keys of nested elements are joined by a
    dot; of two that read alike (0 and "0"), the second gets a `_` in front. A tuple of one is still
    a tuple. Only dense tensors count; quantized ones are returned as
    their float32 values.
    """
    if isinstance(value, Tensor):
        value = value.dequantize() if value.is_quantized else value
        return {None: value} if _is_dense(value) else {}
    items: Iterator[tuple[object, object]]
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, (tuple, list)):
        items = iter(enumerate(value))
    elif isinstance(value, SimpleNamespace):
        items = iter(vars(value).items())
    else:
        attributes = getattr(type(value), "__attrs_attrs__", None)
        if attributes is None and is_dataclass(value):
            attributes = fields(value)
        items = ((a.name, getattr(value, a.name, None)) for a in attributes or ())
    tensors: dict[str | None, Tensor] = {}
    for key, element in items:
        for inner, tensor in tensors_in(element).items():
            text = str(key) if inner is None else f"{key}.{inner}"
            while text in tensors:
                text = f"_{text}"
            tensors[text] = tensor
    return tensors


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is one array in memory: not sparse, nested or inside vmap."""
    compiling = torch.compiler.is_compiling()  # by Dynamo, which cannot trace the next call
    wrapped = not compiling and torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.layout is torch.strided and not tensor.is_nested and not wrapped


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """Return a layer's input: its only argument, or all arguments by position and name."""
    return args[0] if len(args) == 1 and not kwargs else dict(enumerate(args)) | dict(kwargs)


def in_backward() -> bool:
    """Return whether autograd runs a backward pass.

    Gradient checkpointing then calls layers again to recompute their outputs.
    """
    return int(torch._C._current_graph_task_id()) != -1
