"""Capture: what chosen layers return in a forward pass, copied at the moment they return it.

It is usable alone, in anyone's training loop.

A hook that keeps a reference is wrong: an in-place ReLU, `+=` or a reused buffer overwrites what it
refers to. So every activation is copied on its device inside the hook, in one pass together with
the cast.
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

    A tensor stands under None; the elements of a tuple, list or dict under their position or key,
    those of a dataclass, attrs class or namespace under their attribute's name; nested ones under
    both, joined by a dot. A tuple of one is still a tuple. Only dense tensors count.
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
    found: dict[str | None, Tensor] = {}
    for key, element in items:
        for inner, tensor in tensors_in(element).items():
            found[str(key) if inner is None else f"{key}.{inner}"] = tensor
    return found


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is one array in memory: not sparse, nested or inside vmap."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.layout is torch.strided and not tensor.is_nested and not wrapped


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """Return a layer's input: its only argument, or all of them by position and name."""
    return args[0] if len(args) == 1 and not kwargs else dict(enumerate(args)) | dict(kwargs)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module by its first name; the model itself comes last, as `OUTPUT`."""
    layers = {name: module for name, module in model.named_modules() if name}
    return layers | {output_name(layers): model}


def output_name(layers: Container[str]) -> str:
    """Return the name under which what the model returns is captured, a free one."""
    name = OUTPUT
    while name in layers:
        name = f"_{name}"
    return name


def copied(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a contiguous copy of `tensor` outside the graph, cast to `dtype` in the same pass."""
    source = tensor.detach()
    out = torch.empty(source.shape, dtype=dtype or source.dtype, device=source.device)
    return copy_into(out, source)


def copy_into(out: Tensor, source: Tensor) -> Tensor:
    """Copy `source` to the contiguous tensor `out` of the same shape, and return `out`.

    From channels-last maps on a CPU, sample by sample as matrices: torch turns those in blocks,
    for half the CPU time.
    """
    apart = out.device.type == source.device.type == "cpu" and source.ndim == 4
    if apart and source.is_contiguous(memory_format=torch.channels_last):
        for one, other in zip(out, source, strict=True):
            one.flatten(1).copy_(other.flatten(1))
        return out
    return out.copy_(source)


Process = Callable[[str, Tensor], Tensor]
"""Makes what is kept of what a layer returned: a tensor of its own memory, on the same device."""


class StopForward(BaseException):
    """Ends a forward pass once everything wanted is captured; `forward` swallows it.

    No Exception, so that a model's own `except Exception` cannot hold it up.
    """


def forward(model: Callable[..., object], *inputs: object) -> None:
    """Run a forward pass for its activations only; `capture`'s `stop_after` may end it early."""
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

    The model is otherwise left as it is: its mode, gradients, outputs and other hooks. Each forward
    pass replaces the activations of the one before. When the block ends, however it ends, the hooks
    are gone.

    Example:
        import torch, torchvision

        network = torchvision.models.resnet18()
        with pipeline.capture(network, ["layer1", "layer4"]) as activations:
            scores = network(torch.randn(2, 3, 224, 224))
        print(activations["layer1"].shape)  # (sample, channel, height, width)

    Args:
        model: any module.
        layers: addresses: dotted names, also `name:call`, `name[key]`, `name:in`; globs and `re:`
            expressions as in `LayerSelector`.
        types: of what globs and expressions find, only modules of these classes.
        process: `(address, output) -> tensor` instead of a plain copy, e.g. to reduce on the
            device.
        stop_after: end the forward pass with `StopForward` once so many activations are there; run
            the model through `forward`, which expects that.

    Yields:
        The activations of the latest forward pass.

    Raises:
        LayerError: when `model` has no such layer, or (during the forward pass) a layer gives no
            such tensor.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    modules[output_name(modules)] = modules.pop("")
    refuse_what_hides_its_layers(model)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    texts = dict.fromkeys(text for p in patterns for text in _matching(p, modules, types))
    addresses = [LayerPath.parse(text, list(modules)) for text in texts]
    for address in addresses:
        if address.layer not in modules:
            raise LayerError(
                f"the model has no layer {address.layer!r}; {suggestion(address.layer, modules)}"
            )
    activations = Activations(addresses)
    make = process or (lambda _name, tensor: copied(tensor))

    def keep(address: LayerPath, call: int, value: Tensor) -> None:
        text = str(address)
        activations.keep(text, call, make(text, value))
        if stop_after is not None and len(activations) >= stop_after:
            raise StopForward

    by_module: dict[nn.Module, list[LayerPath]] = {}
    for address in addresses:
        by_module.setdefault(modules[address.layer], []).append(address)
    with ExitStack() as hooks:
        counts: dict[nn.Module, int] = {}

        def begin(*_: object) -> None:
            activations.clear()
            counts.clear()

        hooks.callback(model.register_forward_pre_hook(begin).remove)
        for module, wanted in by_module.items():
            _hook(hooks, module, wanted, counts, keep)
        yield activations


def _matching(
    pattern: str, modules: Mapping[str, nn.Module], types: Sequence[str]
) -> Sequence[str]:
    """Return the addresses that a glob or an expression finds; an address is returned as it is."""
    if is_exact(pattern) or pattern in modules:
        return [pattern]
    *names, _ = modules  # the last is the whole model
    for reading in readings(pattern):
        found = [
            str(replace(reading, layer=name))
            for name in names
            if matches(reading.layer, name)
            and (not types or {kind.__name__ for kind in type(modules[name]).__mro__} & {*types})
        ]
        if found:
            return found
    of_types = f" of type {' or '.join(types)}" if types else ""
    near = suggestion(pattern, names)
    raise LayerError(f"{pattern!r} matches no layer{of_types} of the model; {near}")


def refuse_what_hides_its_layers(model: nn.Module) -> None:
    """Refuse models whose layers do not run as the modules that hooks are on."""
    for name, module in model.named_modules():
        where = f"layer {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise LayerError(
                f"{where} is TorchScript, whose layers cannot be traced; load the original class"
            )
        in_place = getattr(module, "_compiled_call_impl", None) is not None  # by module.compile()
        if in_place or type(module).__name__ == "OptimizedModule":
            raise LayerError(
                f"{where} is compiled already, and hooks set now would be ignored; "
                "capture the plain model (in a run: compile=true)"
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise LayerError(f"{where} is DataParallel over several devices; capture its `.module`")


def _hook(
    hooks: ExitStack,
    module: nn.Module,
    wanted: Sequence[LayerPath],
    counts: dict[nn.Module, int],
    take: Callable[[LayerPath, int, Tensor], None],
) -> None:
    inputs = [address for address in wanted if address.input]
    outputs = [address for address in wanted if not address.input]

    def keep(addresses: Sequence[LayerPath], value: object, call: int) -> None:
        found = tensors_in(value)
        for address in addresses:
            if address.call not in (None, call):
                continue
            if address.key not in found:
                keys = ", ".join(f"[{key}]" for key in found if key is not None)
                raise LayerError(
                    f"{address}: {type(module).__name__} gives "
                    f"{'no tensor' if not found else 'not one tensor'}"
                    + (f" there; choose one of {keys}" if keys else "")
                )
            take(address, call, found[address.key])

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
    """Tell whether autograd runs a backward pass: gradient checkpointing calls layers again in it,
    to recompute what they have returned before.
    """
    return int(torch._C._current_graph_task_id()) != -1
