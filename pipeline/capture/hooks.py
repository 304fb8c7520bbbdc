"""Capture: copy the outputs of selected layers during a forward pass.

Also usable alone, in any training loop.

A hook must not keep references: an in-place ReLU, `+=` or a reused buffer overwrites the tensor. So
every activation is copied on its device inside the hook, in one pass together with the cast.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.capture.activations import Activations
from pipeline.capture.layer_path import OUTPUT, LayerPath
from pipeline.capture.selector import is_exact, matches, readings
from pipeline.common.errors import LayerError, suggestion


def tensors_in(value: object) -> dict[str | None, Tensor]:
    """Return the tensors of a layer's output or input by key.

    A plain tensor has the key None; an element of a tuple, list or dict its position or key; a
    field of a dataclass, attrs class or namespace its name. Keys of nested elements are joined by a
    dot. A tuple of one is still a tuple. Only dense tensors count.
    """
    if isinstance(value, Tensor):
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
            tensors[str(key) if inner is None else f"{key}.{inner}"] = tensor
    return tensors


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is one array in memory: not sparse, nested or inside vmap."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.layout is torch.strided and not tensor.is_nested and not wrapped


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """Return a layer's input: its only argument, or all arguments by position and name."""
    return args[0] if len(args) == 1 and not kwargs else dict(enumerate(args)) | dict(kwargs)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module by its first name, the model itself last, as `OUTPUT`."""
    layers = {name: module for name, module in model.named_modules() if name}
    return layers | {output_name(layers): model}


def output_name(layers: Container[str]) -> str:
    """Return the name of the model's output: `OUTPUT`, or a variant that no layer has."""
    name = OUTPUT
    while name in layers:
        name = f"_{name}"
    return name


def copied(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a detached contiguous copy of `tensor`, cast to `dtype` in the same pass."""
    source = tensor.detach()
    out = torch.empty(source.shape, dtype=dtype or source.dtype, device=source.device)
    return copy_into(out, source)


def copy_into(out: Tensor, source: Tensor) -> Tensor:
    """Copy `source` to the contiguous tensor `out` of the same shape, and return `out`.

    Channels-last maps on a CPU are copied sample by sample as matrices: torch transposes those in
    blocks, in half the CPU time.
    """
    maps_on_cpu = out.device.type == source.device.type == "cpu" and source.ndim == 4
    if maps_on_cpu and source.is_contiguous(memory_format=torch.channels_last):
        for one, other in zip(out, source, strict=True):
            one.flatten(1).copy_(other.flatten(1))
        return out
    return out.copy_(source)


Process = Callable[[str, Tensor], Tensor]
"""Turns a layer's output into the tensor to keep, in its own memory on the same device."""


class StopForward(BaseException):
    """End of a forward pass, once every requested activation is captured; see `forward`.

    Not an Exception, so that a model's own `except Exception` cannot catch it.
    """


def forward(model: Callable[..., object], *inputs: object) -> None:
    """Run a forward pass only for its activations; `stop_after` of `capture` may end it early."""
    with suppress(StopForward):
        model(*inputs)


@contextmanager
def capture(
    model: nn.Module,
    layers: Sequence[str] | str,
    *,
    types: Sequence[str] = (),
    process: Process | None = None,
    stop_after: int | None = None,
) -> Iterator[Activations]:
    """Capture the activations of `layers` in every forward pass of `model` inside the block.

    The model's mode, gradients, outputs and other hooks do not change. Each forward pass replaces
    the previous activations. The hooks are removed when the block ends, also by an exception.

    Example:
        import torch, torchvision

        network = torchvision.models.resnet18()
        with pipeline.capture(network, ["layer1", "layer4"]) as activations:
            scores = network(torch.randn(2, 3, 224, 224))
        print(activations["layer1"].shape)  # (sample, channel, height, width)

    Args:
        model: any module.
        layers: dotted names, also `name:call`, `name[key]`, `name:in`; globs and `re:` expressions
            as in `LayerSelector`.
        types: limit globs and expressions to modules of these classes.
        process: `(path, output) -> tensor` instead of a plain copy, e.g. to reduce on the device.
        stop_after: end the forward pass with `StopForward` after this many activations; run the
            model through `forward`, which handles it.

    Yields:
        The activations of the latest forward pass.

    Raises:
        LayerError: when `model` has no such layer, or (during the forward pass) a layer returns no
            such tensor.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    modules[output_name(modules)] = modules.pop("")
    refuse_what_hides_its_layers(model)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    texts = dict.fromkeys(text for p in patterns for text in _matching(p, modules, types))
    paths = [LayerPath.parse(text, list(modules)) for text in texts]
    for path in paths:
        if path.layer not in modules:
            raise LayerError(
                f"the model has no layer {path.layer!r}; {suggestion(path.layer, modules)}"
            )
    activations = Activations(paths)
    make = process or (lambda _name, tensor: copied(tensor))

    def keep(path: LayerPath, call: int, value: Tensor) -> None:
        text = str(path)
        activations.keep(text, call, make(text, value))
        if stop_after is not None and len(activations) >= stop_after:
            raise StopForward

    by_module: dict[nn.Module, list[LayerPath]] = {}
    for path in paths:
        by_module.setdefault(modules[path.layer], []).append(path)
    with ExitStack() as hooks:
        counts: dict[nn.Module, int] = {}

        def reset(*_: object) -> None:
            activations.clear()
            counts.clear()

        hooks.callback(model.register_forward_pre_hook(reset).remove)
        for module, module_paths in by_module.items():
            _hook(hooks, module, module_paths, counts, keep)
        yield activations


def _matching(
    pattern: str, modules: Mapping[str, nn.Module], types: Sequence[str]
) -> Sequence[str]:
    """Return the layer paths that a glob or expression matches; other text is one path."""
    if is_exact(pattern) or pattern in modules:
        return [pattern]
    *names, _ = modules  # the last is the whole model
    for reading in readings(pattern):
        matching = [
            str(replace(reading, layer=name))
            for name in names
            if matches(reading.layer, name)
            and (not types or {kind.__name__ for kind in type(modules[name]).__mro__} & {*types})
        ]
        if matching:
            return matching
    of_types = f" of type {' or '.join(types)}" if types else ""
    near = suggestion(pattern, names)
    raise LayerError(f"{pattern!r} matches no layer{of_types} of the model; {near}")


def refuse_what_hides_its_layers(model: nn.Module) -> None:
    """Raise LayerError for a model whose layers do not run as hooked modules."""
    for name, module in model.named_modules():
        where = f"layer {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise LayerError(
                f"{where} is TorchScript, whose layers cannot be traced; load the original class"
            )
        in_place = getattr(module, "_compiled_call_impl", None) is not None  # by module.compile()
        if in_place or type(module).__name__ == "OptimizedModule":
            raise LayerError(
                f"{where} is compiled already, so new hooks would be ignored; "
                "capture the plain model (in a run: compile=true)"
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise LayerError(f"{where} is DataParallel over several devices; capture its `.module`")


def _hook(
    hooks: ExitStack,
    module: nn.Module,
    paths: Sequence[LayerPath],
    counts: dict[nn.Module, int],
    take: Callable[[LayerPath, int, Tensor], None],
) -> None:
    inputs = [path for path in paths if path.input]
    outputs = [path for path in paths if not path.input]

    def keep(selected: Sequence[LayerPath], value: object, call: int) -> None:
        tensors = tensors_in(value)
        for path in selected:
            if path.call not in (None, call):
                continue
            if path.key not in tensors:
                keys = ", ".join(f"[{key}]" for key in tensors if key is not None)
                raise LayerError(
                    f"{path}: {type(module).__name__} has "
                    f"{'no such tensor' if tensors else 'no tensor'}"
                    + (f"; choose one of {keys}" if keys else "")
                )
            take(path, call, tensors[path.key])

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _in_backward():
            return
        keep(inputs, arguments(args, kwargs), counts.get(module, 0))

    def after(_module: nn.Module, _args: object, output: object) -> None:
        if _in_backward():
            return
        call = counts.get(module, 0)
        counts[module] = call + 1
        keep(outputs, output, call)

    if inputs:
        hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    hooks.callback(module.register_forward_hook(after).remove)


def _in_backward() -> bool:
    """Return whether autograd runs a backward pass.

    Gradient checkpointing then calls layers again to recompute their outputs.
    """
    return int(torch._C._current_graph_task_id()) != -1
