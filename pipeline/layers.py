"""Layers: what a model's layers return (the dry batch), and which of them a configuration selects.

In: a loaded model and names, globs, `re:` expressions or module types. Out: the selected layers in
execution order, each with the shape and axes of its activation. Called by `extract` and by
`featuremaps layers`.
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.addresses import Address
from pipeline.errors import LayerError
from pipeline.names import suggestion

if TYPE_CHECKING:
    from pipeline.capture import LayerCall
    from pipeline.models.base import LoadedModel

log = logging.getLogger(__name__)

MAP_AXES = ("channel", "height", "width")
TOKEN_AXES = ("token", "channel")
VECTOR_AXES = ("channel",)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One selected activation.

    Attributes:
        name: the archive's name: the layer, and the call, key or `in` where they apply.
        alias: the name to show.
        module_type: class name of the module.
        call: which invocation of the layer in one forward, 0-based.
        axes: axis names after `sample`.
        shape: sizes of those axes.
        source_dtype: what the layer returned, e.g. `float32`.
    """

    name: str
    alias: str
    module_type: str
    call: int
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    source_dtype: str


@dataclass(frozen=True, kw_only=True)
class LayerSelector:
    """Which layers to keep.

    Attributes:
        include: exact names, globs (`layer*.conv?`; `*` also crosses dots) or `re:` with a regular
            expression for the whole name. One exact name may carry `:call`, `[key]` or `:in`.
        types: of those, only modules of these classes or their subclasses, e.g. `[Conv2d]`.
        exclude: of those, not these (exact names, globs, `re:`).
        aliases: name → name to show.
    """

    include: tuple[str, ...] = ("*",)
    types: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("include", "types", "exclude"):
            values = getattr(self, name)
            object.__setattr__(self, name, (values,) if isinstance(values, str) else tuple(values))
        if not self.include:
            raise ValueError("include is empty; name at least one layer")
        for pattern in (*self.include, *self.exclude):
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def is_exact(pattern: str) -> bool:
    """Tell whether `pattern` names one layer (and is no glob and no regular expression)."""
    return not pattern.startswith("re:") and not any(mark in pattern for mark in "*?")


def matches(pattern: str, name: str) -> bool:
    """Tell whether a glob, a `re:` expression or an exact name covers the whole of `name`."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return pattern == name or (not is_exact(pattern) and fnmatch.fnmatchcase(name, pattern))


def select(
    selector: LayerSelector, model: LoadedModel, calls: Sequence[LayerCall], batch: int
) -> list[Layer]:
    """Return the selected layers, in execution order.

    Args:
        selector: what to keep.
        model: the model, for the names of all its layers.
        calls: what the dry batch recorded, in execution order.
        batch: the dry batch's size.

    Raises:
        LayerError: when a pattern matches nothing, or a layer that was named exactly is not reached
            or does not return one tensor per sample.
    """
    names = [name for name, _ in model.module.named_modules(remove_duplicate=False) if name]
    same = _first_names(model)
    _check_types(selector, model)
    wanted: dict[str, bool] = {}  # address → named exactly
    for pattern in selector.include:
        if is_exact(pattern):
            address = Address.parse(pattern, names)
            if address.layer not in names:
                raise LayerError(
                    f"layers.include: no layer {pattern!r}; {suggestion(address.layer, names)}"
                )
            if not _kept(selector, address.layer, model):
                kind = type(model.module.get_submodule(address.layer)).__name__
                raise LayerError(
                    f"layers.include: {pattern!r} (a {kind}) is named, but layers.types or "
                    "layers.exclude leaves it out"
                )
            wanted[str(address)] = True
        else:
            found = [name for name in names if matches(pattern, name)]
            if not found:
                raise LayerError(
                    f"layers.include: {pattern!r} matches no layer; {suggestion(pattern, names)}"
                )
            for name in found:
                if name == same[name] and _kept(selector, name, model):
                    wanted.setdefault(name, False)
    if not wanted:
        raise LayerError("layers: include, types and exclude together leave no layer")
    layers: dict[str, tuple[int, Layer]] = {}
    for text, exact in wanted.items():
        for order, layer in _layers_at(Address.parse(text, names), same, calls, batch, exact=exact):
            layers[layer.name] = (order, layer)
    if not layers:
        raise LayerError("layers: none of the selected layers returns one tensor per sample")
    chosen = [layer for _, layer in sorted(layers.values(), key=lambda pair: pair[0])]
    return _with_aliases(chosen, selector.aliases)


def _first_names(model: LoadedModel) -> dict[str, str]:
    """Map every name to the first name of the same module.

    A module may stand under several names.
    """
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(module), name)
        for name, module in model.module.named_modules(remove_duplicate=False)
        if name
    }


def _type_names(model: LoadedModel, layer: str) -> set[str]:
    return {kind.__name__ for kind in type(model.module.get_submodule(layer)).__mro__}


def _kept(selector: LayerSelector, name: str, model: LoadedModel) -> bool:
    if selector.types and not _type_names(model, name) & set(selector.types):
        return False
    return not any(matches(pattern, name) for pattern in selector.exclude)


def _check_types(selector: LayerSelector, model: LoadedModel) -> None:
    names = [name for name, _ in model.module.named_modules() if name]
    there = set().union(*(_type_names(model, name) for name in names))
    kinds = sorted({type(module).__name__ for name, module in model.module.named_modules() if name})
    for kind in selector.types:
        if kind not in there:
            near = suggestion(kind, kinds)
            raise LayerError(f"layers.types: the model has no layer of type {kind!r}; {near}")


def _layers_at(
    address: Address,
    same: Mapping[str, str],
    calls: Sequence[LayerCall],
    batch: int,
    *,
    exact: bool,
) -> list[tuple[int, Layer]]:
    """Return the activations at an address with their order.

    What cannot be kept is an error or is logged.
    """
    made = [call for call in calls if call.layer == same[address.layer]]
    problem = ""
    if not made:
        problem = "is never reached in a forward pass"
    elif address.call is not None and address.call >= len(made):
        problem = f"is called {len(made)} times; calls are numbered from 0"
    if problem:
        return _refuse(address, problem, exact=exact)
    result = []
    for call in made if address.call is None else [made[address.call]]:
        values = call.inputs if address.input else call.outputs
        name = Address(
            layer=address.layer,
            call=call.call if len(made) > 1 or address.call is not None else None,
            key=address.key,
            input=address.input,
        )
        if address.key not in values:
            keys = [key for key in values if key is not None]
            if not keys:
                problem = (
                    "returns no tensor"
                    if address.key is None
                    else f"returns one tensor, no [{address.key}]"
                )
            else:
                choices = " or ".join(f"{address.layer}[{key}]" for key in keys[:6])
                problem = f"returns several tensors; choose {choices}"
            return _refuse(name, problem, exact=exact)
        shape, dtype = values[address.key]
        axes = {4: MAP_AXES, 3: TOKEN_AXES, 2: VECTOR_AXES}.get(len(shape))
        if not shape or shape[0] != batch:
            return _refuse(
                name, f"has shape {shape} for {batch} samples: no row per sample", exact=exact
            )
        if axes is None:
            return _refuse(
                name, f"has shape {shape}: neither maps, tokens nor a vector", exact=exact
            )
        if not dtype.startswith(("float", "bfloat")):
            return _refuse(name, f"returns {dtype}, not floating point", exact=exact)
        if 0 in shape:
            return _refuse(name, f"has shape {shape}: it is empty", exact=exact)
        layer = Layer(
            name=str(name),
            alias=str(name),
            module_type=call.module_type,
            call=call.call,
            axes=axes,
            shape=shape[1:],
            source_dtype=dtype,
        )
        result.append((call.order, layer))
    return result


def _refuse(address: Address, problem: str, *, exact: bool) -> list[tuple[int, Layer]]:
    if exact:
        raise LayerError(f"layers.include: {address} {problem}")
    log.info("layers: %s left out: it %s", address, problem)
    return []


def _with_aliases(layers: list[Layer], aliases: dict[str, str]) -> list[Layer]:
    names = [layer.name for layer in layers]
    for name in aliases:
        if name not in names:
            raise LayerError(f"layers.aliases: {name!r} is not selected; {suggestion(name, names)}")
    shown = [aliases.get(name, name) for name in names]
    for alias in shown:
        if shown.count(alias) > 1:
            raise LayerError(f"layers.aliases: {alias!r} would stand for two layers")
    return [replace(layer, alias=alias) for layer, alias in zip(layers, shown, strict=True)]
