"""Capture: copy the outputs of selected layers during a forward pass.

Also usable alone, in any training loop.

A hook must not keep references: an in-place ReLU, `+=` or a reused buffer overwrites the tensor. So
every activation is copied on its device inside the hook, in one pass together with the cast.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.capture.activations import Activations
from pipeline.capture.functions import each_pass, observe_functions
from pipeline.capture.selector import (
    MARK,
    OUTPUT,
    LayerPath,
    is_exact,
    matches,
    readings,
    split_function,
)
from pipeline.capture.tensors import arguments, in_backward, tensors_in
from pipeline.common.errors import LayerError, one_line, suggestion


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
    types: Sequence[str | type[nn.Module]] | str | type[nn.Module] = (),
    process: Process | None = None,
    stop_after: int | None = None,
) -> Iterator[Activations]:
    """Capture the activations of `layers` in every forward pass of `model` inside the block.

    The model's mode, gradients, outputs and other hooks do not change. Each forward pass of `model`
    replaces the previous activations; calls of its layers alone add up. The hooks are removed when
    the block ends, also by an exception.

    Example:
        import torch, torchvision

        network = torchvision.models.resnet18()
        with pipeline.capture(network, ["layer1", "layer4"]) as activations:
            scores = network(torch.randn(2, 3, 224, 224))
        print(activations["layer1"].shape)  # (sample, channel, height, width)

    Args:
        model: any module.
        layers: dotted names, also `name:call`, `name[key]`, `name:in`, `name@function` and
            `name@attention` (see `LayerSelector`); globs and `re:` expressions.
        types: limit globs and expressions to modules of these classes (or names of classes).
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
    patterns = [layers] if isinstance(layers, (str, nn.Module)) else list(layers)
    given_types = [types] if isinstance(types, (str, type)) else types
    kinds = [kind if isinstance(kind, str) else kind.__name__ for kind in given_types]
    texts = dict.fromkeys(text for p in patterns for text in _matching(p, modules, kinds))
    paths = [LayerPath.parse(text, list(modules)) for text in texts]
    by_module: dict[nn.Module, list[LayerPath]] = {}
    by_function: dict[tuple[nn.Module, str], list[LayerPath]] = {}
    for path in paths:
        layer, function = split_function(path.layer)
        if path.layer in modules:
            by_module.setdefault(modules[path.layer], []).append(path)
        elif function and layer in modules and not path.input:
            by_function.setdefault((modules[layer], function), []).append(path)
        else:
            name = path.layer if layer in modules else layer
            raise LayerError(f"the model has no layer {name!r}; {suggestion(name, modules)}")
    activations = Activations(paths)
    make = process or (lambda _name, tensor: copied(tensor))

    def keep(path: LayerPath, call: int, value: Tensor) -> None:
        text = str(path)
        activations.keep(text, call, make(text, value))
        if stop_after is not None and len(activations) >= stop_after:
            raise StopForward

    def take(module: nn.Module, function: str, call: int, result: object) -> None:
        function_paths = by_function[module, function]
        activations.function_calls[function_paths[0].layer] += 1
        if isinstance(result, str):
            raise LayerError(f"{function_paths[0]} {result}")
        select(function_paths, result, call, function)

    select: Callable[..., None] = partial(_keep_selected, keep)
    with ExitStack() as hooks:
        counts: dict[nn.Module, int] = {}

        passes = hooks.enter_context(each_pass(model))

        def begin(module: nn.Module, _: object) -> None:
            if module is model and not passes.running and not in_backward():
                activations.clear()
                counts.clear()

        hooks.callback(model.register_forward_pre_hook(begin).remove)
        if by_function:
            select = hooks.enter_context(observe_functions(model, take, by_function))(select)
        for module, module_paths in by_module.items():
            _hook(hooks, module, module_paths, counts, select)
        yield activations


def _matching(
    pattern: str, modules: Mapping[str, nn.Module], types: Sequence[str]
) -> Sequence[str]:
    """Return the layer paths that a glob or expression matches; other text is one path."""
    if not isinstance(pattern, str):
        name = next(iter(modules))
        raise LayerError(f"layers: name them, e.g. {name!r}; got {one_line(pattern, limit=80)}")
    if is_exact(pattern) or pattern in modules:
        return [pattern]
    *names, _ = modules  # the last is the whole model
    for reading in readings(pattern):
        layer, function = split_function(reading.layer)
        suffix = function and f"{MARK}{function}"
        matching = [
            str(replace(reading, layer=name + suffix))
            for name in names
            if matches(layer, name)
            and (not types or {kind.__name__ for kind in type(modules[name]).__mro__} & {*types})
        ]
        if matching:
            return matching
    of_types = f" of type {' or '.join(types)}" if types else ""
    hint = suggestion(pattern, names)
    raise LayerError(f"{pattern!r} matches no layer{of_types} of the model; {hint}")


def refuse_what_hides_its_layers(model: nn.Module) -> None:
    """Raise LayerError for a model whose layers do not run as hooked modules."""
    for name, module in model.named_modules():
        where = f"layer {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise LayerError(
                f"{where} is TorchScript, whose layers cannot be traced; load the original class"
            )
        if isinstance(module, torch.fx.GraphModule):
            weighted = {key for key, x in module.named_modules() if key and [*x.parameters()]}
            called = {node.target for node in module.graph.nodes if node.op == "call_module"}
            if weighted and not weighted & called:
                raise LayerError(
                    f"{where} is a graph of functions, whose layers do not run as modules; load "
                    "the original class, or use torch.export.unflatten(program)"
                )
        in_place = getattr(module, "_compiled_call_impl", None) is not None  # by module.compile()
        if in_place or type(module).__name__ == "OptimizedModule":
            raise LayerError(
                f"{where} is compiled already, so new hooks would be ignored; "
                "capture the plain model (in a run: compile=true)"
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise LayerError(f"{where} is DataParallel over several devices; capture its `.module`")


def _keep_selected(
    keep: Callable[[LayerPath, int, Tensor], None],
    paths: Sequence[LayerPath],
    value: object,
    call: int,
    kind: str,
) -> None:
    """Pass the tensors at `paths` to `keep`, out of what one call of a layer took or returned."""
    tensors = tensors_in(value)
    for path in paths:
        if path.call not in (None, call):
            continue
        if path.key not in tensors:
            keys = ", ".join(f"[{key}]" for key in tensors if key is not None)
            raise LayerError(
                f"{path}: {kind} has no such tensor"
                + (f"; choose one of {keys}" if keys else "")
                + ("" if tensors else "; sparse, nested and torch.func's are never captured")
            )
        keep(path, call, tensors[path.key])


def _hook(
    hooks: ExitStack,
    module: nn.Module,
    paths: Sequence[LayerPath],
    counts: dict[nn.Module, int],
    select: Callable[..., None],
) -> None:
    inputs = [path for path in paths if path.input]
    outputs = [path for path in paths if not path.input]

    kind = type(module).__name__

    def before(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if called is not module or in_backward():  # a copy of the module has its hooks
            return
        select(inputs, arguments(args, kwargs), counts.get(module, 0), kind)

    def after(called: nn.Module, _args: object, output: object) -> None:
        if called is not module or in_backward():
            return
        call = counts.get(module, 0)
        counts[module] = call + 1
        select(outputs, output, call, kind)

    if inputs:
        hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    hooks.callback(module.register_forward_hook(after).remove)
