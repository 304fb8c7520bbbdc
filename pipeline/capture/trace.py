"""Trace: every call of every layer in one forward pass, with shapes and dtypes.

Two passes with different batch sizes show which axis of each tensor is the sample axis. Activations
are not kept.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.capture.attention import WINDOWED
from pipeline.capture.classifier_input import Ending, HeldCall
from pipeline.capture.functions import FunctionCall, observe_functions
from pipeline.capture.hooks import layers_of
from pipeline.capture.selector import MARK, LayerPath
from pipeline.capture.tensors import arguments, tensors_in
from pipeline.common.errors import LayerError

DUMMY_BATCH_SIZE = 3
WINDOW_ATTENTION = "window attention"


class TracedTensor(NamedTuple):
    """A tensor that a layer took or returned.

    Attributes:
        shape: in the dummy batch.
        dtype: its name.
        alone: its shape for a single image; None if the call did not happen or had no such tensor.
        sliced: number of leading tokens that a slice (`x[:, 1:]`) has removed.
        constant_first: where some tokens, but not all, are the same for two images (a class token
            before the first attention), whether the first token is one of them; else None.
    """

    shape: tuple[int, ...]
    dtype: str
    alone: tuple[int, ...] | None = None
    sliced: int = 0
    constant_first: bool | None = None

    def sample_axis(self) -> int | str:
        """Return the sample axis, or why the tensor has none.

        It is the only axis whose size changes with the batch size, and the two are equal.
        """
        if self.alone is None:
            return "has no counterpart for a single image: its calls depend on the batch"
        sizes = f"has shape {self.shape} for {DUMMY_BATCH_SIZE} images and {self.alone} for one"
        if len(self.shape) != len(self.alone):
            return f"{sizes}: the number of its axes depends on the batch (`squeeze`?)"
        changed = [i for i, size in enumerate(self.shape) if size != self.alone[i]]
        if not changed:
            return f"has shape {self.shape} for any number of images: no row per sample"
        sides = (self.shape[changed[0]], self.alone[changed[0]])
        if len(changed) > 1 or sides != (DUMMY_BATCH_SIZE, 1):
            return f"{sizes}: no row per sample"
        return changed[0]


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One call of one layer with the dummy batch.

    Attributes:
        layer: the module's first name, or `LAYER@FUNCTION`.
        module_type: its class name, or the function's name.
        call: which call of that layer, 0-based.
        order: position among all calls, in the order in which they returned.
        parameters: number of parameters of the module and its children.
        inputs, outputs: by key, as `tensors_in` names them.
        problem: why a function call cannot be captured; usually empty.
    """

    layer: str
    module_type: str
    call: int
    order: int
    parameters: int
    inputs: Mapping[str | None, TracedTensor]
    outputs: Mapping[str | None, TracedTensor]
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The calls of a model and its layers in one forward pass.

    Attributes:
        calls: of every layer, in execution order.
        model: the call of the model itself.
        functions: the calls of torch functions, if they were recorded.
        function_modules: a placeholder for each `LAYER@FUNCTION`.
        returned: the model's output; None once traces are `compared`.
        penultimate: the classifier's input, or the model's output if it has no classifier; None if
            the model returns several tensors and none of them is the obvious one.
        difference: by how much recording the functions changed the model's output.
    """

    calls: Sequence[LayerCall]
    model: LayerCall
    functions: Sequence[LayerCall]
    function_modules: Mapping[str, FunctionCall]
    returned: object
    penultimate: LayerPath | None = None
    difference: float = 0.0


def compared(batch: Trace, single: Trace) -> Trace:
    """Return the trace of the dummy batch, with the shapes and the end of a single image's."""
    by_call = {
        (call.layer, call.call): call for call in (*single.calls, single.model, *single.functions)
    }

    def with_alone(call: LayerCall) -> LayerCall:
        other = by_call.get((call.layer, call.call))
        if other is None:
            return call
        inputs, outputs = (
            {key: t._replace(alone=a[key].shape) if key in a else t for key, t in tensors.items()}
            for tensors, a in ((call.inputs, other.inputs), (call.outputs, other.outputs))
        )
        return replace(call, inputs=inputs, outputs=outputs)

    return replace(
        batch,
        calls=[*map(with_alone, batch.calls)],
        model=with_alone(batch.model),
        functions=[*map(with_alone, batch.functions)],
        returned=None,
        penultimate=single.penultimate,
    )


def _sliced(tensor: Tensor) -> int:
    """Return how many tokens precede a tensor's first token of each sample in memory.

    >>> _sliced(torch.zeros(3, 197, 8)[:, 1:])
    1
    """
    if tensor.layout != torch.strided or tensor.ndim != 3 or not tensor.stride(1):
        return 0
    sliced = int(tensor.storage_offset()) // tensor.stride(1)
    sample_stride = (tensor.shape[1] + sliced) * tensor.stride(1)
    return sliced if tensor.stride(0) == sample_stride else 0


def _constant_first(tensor: Tensor, samples: int) -> bool | None:
    """Return `TracedTensor.constant_first` of a tensor.

    >>> _constant_first(torch.tensor([[[0.0], [1]], [[0], [2]]]), 2)
    True
    """
    if tensor.ndim != 3 or samples not in tensor.shape[:2] or samples < 2 or tensor.is_meta:
        return None
    first, second = (tensor if len(tensor) == samples else tensor.transpose(0, 1))[:2].unbind()
    if not (first[:, :1] == second[:, :1]).any():  # a fast no for almost all tensors
        return None
    equal = (first == second).all(1)
    return bool(equal[0]) if equal.any() and not equal.all() else None


def record(
    model: nn.Module, images: Tensor, *, functions: bool = False, penultimate: bool = False
) -> Trace:
    """Run one forward pass of a model in evaluation mode, and return every call.

    Args:
        functions: whether to record the calls of torch functions, too.
        penultimate: whether to find the classifier's input; the tensors of the last calls are held.
    """
    ending = Ending() if penultimate else None
    calls: list[LayerCall] = []
    function_calls: list[LayerCall] = []
    function_modules: dict[str, FunctionCall] = {}
    order = itertools.count()
    counts = Counter[str]()
    names = {module: name for name, module in layers_of(model).items()}

    def shapes(tensors: Mapping[str | None, Tensor]) -> dict[str | None, TracedTensor]:
        return {
            key: TracedTensor(
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                sliced=_sliced(tensor),
                constant_first=_constant_first(tensor, len(images)),
            )
            for key, tensor in tensors.items()
        }

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        name = names[module]
        call = counts[name]
        counts[name] += 1
        inputs, outputs = tensors_in(arguments(args, kwargs)), tensors_in(output)
        leaf = not any(module.children()) or isinstance(module, nn.Linear)
        if ending is not None and leaf:
            ending.add(HeldCall(name, call, module, inputs, outputs))
        calls.append(LayerCall(
            layer=name,
            module_type=type(module).__name__,
            call=call,
            order=next(order),
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            inputs=shapes(inputs),
            outputs=shapes(outputs),
        ))  # fmt: skip

    def take(module: nn.Module, function: str, number: int, result: object) -> None:
        name = f"{names[module]}{MARK}{function}"
        function_modules.setdefault(name, FunctionCall(module, function))
        function_calls.append(LayerCall(
            layer=name,
            module_type=WINDOW_ATTENTION if hasattr(result, WINDOWED) else function,
            call=number,
            order=next(order),
            parameters=0,
            inputs={},
            outputs=shapes(tensors_in(result)),
            problem=result if isinstance(result, str) else "",
        ))  # fmt: skip

    with ExitStack() as hooks, torch.no_grad():
        note: Callable[..., None] = hook
        if functions:
            note = hooks.enter_context(observe_functions(model, take))(hook)
        for module in names:
            handle = module.register_forward_hook(note, with_kwargs=True)
            hooks.callback(handle.remove)
        returned = model(images)
    if not calls or calls[-1].layer != names[model]:
        kind = type(model).__name__
        raise LayerError(
            f"model: {kind}.__call__ runs no hooks of the model; define forward instead"
        )
    *layer_calls, model_call = calls
    return Trace(
        calls=layer_calls,
        model=model_call,
        functions=function_calls,
        function_modules=function_modules,
        returned=returned,
        penultimate=ending.penultimate(model_call.layer, returned) if ending else None,
    )
