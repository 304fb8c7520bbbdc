"""Patterns: resolve names, globs and regular expressions to the layer paths of a model."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import CodeType

from torch import nn

from pipeline.capture.attention import ATTENTION, ROLLOUT
from pipeline.capture.blocks import blocks_of, children_of
from pipeline.capture.selector import (
    MARK,
    OUTPUT,
    LayerPath,
    LayerSelector,
    is_exact,
    matches,
    readings,
    split_function,
)
from pipeline.capture.trace import LayerCall, Trace
from pipeline.common.errors import ConfigError, LayerError, suggestion

log = logging.getLogger(__name__)

EVERY_BLOCK = "every_block"
_KERNELS = {
    "flash_attn": ("flash-attn", "use scaled_dot_product_attention in its place"),
    "memory_efficient_attention": ("xformers", "set XFORMERS_DISABLED=1 in the environment"),
    "flex_attention": ("FlexAttention", "use scaled_dot_product_attention in its place"),
}
"""Start of a function's or module's name → library and remedy."""
_FROM_END = re.compile(r"-[1-9]\d*")


class Patterns:
    """The layer names of one model, and the layers' calls with the dummy batch.

    Attributes:
        names: every dotted name, including further names of the same module and the traced
            function calls.
        modules: by name; the model itself has the name of its output.
    """

    def __init__(self, module: nn.Module, traced: Trace) -> None:
        every = dict(module.named_modules(remove_duplicate=False))
        self.names: list[str] = [name for name in every if name]
        self.modules = {name: every[name] for name in self.names}
        self.modules[traced.model.layer] = module
        self.modules |= traced.function_modules
        self.names += traced.function_modules
        first: dict[int, str] = {}
        # A module may have several names; its calls are recorded under the first.
        self._same = {name: first.setdefault(id(m), name) for name, m in self.modules.items()}
        self._model = module
        self._traced = traced
        self._calls: dict[str, list[LayerCall]] = {}
        for call in (*traced.calls, traced.model, *traced.functions):
            self._calls.setdefault(call.layer, []).append(call)

    def calls(self, name: str) -> Sequence[LayerCall]:
        """Return the calls of a layer, by any of its names; empty if it is never reached."""
        return self._calls.get(self._same[name], [])

    def paths(self, selector: LayerSelector) -> dict[LayerPath, bool]:
        """Return path → whether it was named exactly; a path may still cover excluded calls."""
        self._check_types(selector)
        self._check_excluded(selector)
        selected: dict[LayerPath, bool] = {}
        for pattern in map(self._from_end, selector.include):
            if is_exact(pattern) and not self._is_blocks(pattern):
                path = LayerPath.parse(pattern, list(self.modules))
                if path.layer not in self.modules:
                    raise self._unknown(pattern, path.layer)
                selected[path] = True
                continue
            for path in self._blocks if self._is_blocks(pattern) else self._matching(pattern):
                name = path.layer
                types = () if MARK in name and MARK in pattern else selector.types
                of_type = not types or self._type_names(name) & set(types)
                if name == self._same[name] and of_type:
                    selected.setdefault(path, False)
        return {
            path: exact
            for path, exact in selected.items()
            if not self.excludes(selector, path, exact)
        }

    def excludes(self, selector: LayerSelector, path: LayerPath, exact: bool) -> bool:
        """Return whether a selector excludes a path.

        A layer's name covers all of its outputs. It covers its input too, unless that was included
        by name (`penultimate` is the last layer's input).
        """
        if not selector.exclude:
            return False
        first = self._same[path.layer]
        names = [name for name, module in self._same.items() if module == first]
        return any(
            any(self._matches(reading.layer, name) for name in names)
            and reading.call in (None, path.call)
            and reading.key in (None, path.key)
            and (reading.input == path.input or (path.input and not exact))
            for pattern in selector.exclude
            for reading in self._readings(pattern)
        )

    def _readings(self, pattern: str) -> Sequence[LayerPath]:
        if self._is_blocks(pattern):
            return self._blocks
        pattern = self._from_end(pattern)
        if is_exact(pattern):
            return [LayerPath.parse(pattern, list(self.modules))]
        return readings(pattern)

    def _named(self, pattern: str) -> list[tuple[LayerPath, str]]:
        """Return the readings of any pattern, each with the name of every layer that it matches."""
        return [
            (reading, name)
            for reading in self._readings(pattern)
            for name in self.modules
            if self._matches(reading.layer, name)
        ]

    def _matches(self, pattern: str, name: str) -> bool:
        """Return whether a pattern matches a name; only those with `@` match function calls."""
        functions = MARK in pattern or name not in self._traced.function_modules
        return functions and matches(pattern, name)

    def _matching(self, pattern: str) -> list[LayerPath]:
        """Return the paths that a glob or expression matches.

        If its end may be a key or a set of characters, it is a key if a match has such an element.
        """
        *whole, elements = [
            [replace(reading, layer=x) for x in self.names if self._matches(reading.layer, x)]
            for reading in readings(pattern)
        ]
        present = [path for path in elements if self._has(path)] if whole else elements
        matching = present or (whole[0] if whole else []) or elements
        if matching:
            return matching
        raise self._unknown(pattern, pattern)

    def _unknown(self, pattern: str, layer: str) -> LayerError:
        """Return the error for a pattern that matches nothing."""
        module, function = split_function(layer)
        calls = [name for name in self.names if MARK in name]
        if function in (ATTENTION, ROLLOUT) and (module in self.modules or not is_exact(module)):
            hint = _why_hidden(self.modules.get(module, self._model))
        else:
            hint = suggestion(layer, calls if function and calls else self.names)
        text = f"no layer {pattern!r}" if is_exact(pattern) else f"{pattern!r} matches no layer"
        return LayerError(f"layers.include: {text}; {hint}")

    def _has(self, path: LayerPath) -> bool:
        calls = self.calls(path.layer)
        if path.call is not None:
            calls = calls[path.call :][:1]
        return any(path.key in (call.inputs if path.input else call.outputs) for call in calls)

    def _from_end(self, pattern: str) -> str:
        """Return the path for `last`, `penultimate` or a number from the end.

        Numbers count layers without submodules in execution order. Other patterns, and names of
        layers, are returned unchanged.
        """
        number = -1 if pattern == "last" else int(pattern) if _FROM_END.fullmatch(pattern) else 0
        if pattern in self.modules or not (number or pattern == "penultimate"):
            return pattern
        if pattern == "penultimate":
            if self._traced.penultimate is None:
                keys = ", ".join(f"{OUTPUT}[{key}]" for key in self._traced.model.outputs)
                raise LayerError(
                    "layers.include: penultimate: the model returns several tensors; name a "
                    f"layer, or use {keys or 'one of its outputs'}"
                )
            return str(self._traced.penultimate)
        leaves = [c for c in self._traced.calls if not any(self.modules[c.layer].children())]
        if len(leaves) < -number:
            raise LayerError(
                f"layers.include: {pattern}: a forward pass reaches only {len(leaves)} of them"
            )
        leaf = leaves[number]
        reused = len(self.calls(leaf.layer)) > 1
        return str(LayerPath(layer=leaf.layer, call=leaf.call if reused else None))

    def _type_names(self, name: str) -> set[str]:
        return {kind.__name__ for kind in type(self.modules[name]).__mro__}

    def _is_blocks(self, pattern: str) -> bool:
        return pattern == EVERY_BLOCK and pattern not in self.modules

    @cached_property
    def _blocks(self) -> list[LayerPath]:
        """The model's blocks, or its top-level children if nothing repeats (logged)."""
        names = blocks_of(self._model, self._calls)
        if not names:
            names = children_of(self._model)
            log.warning(
                "layers: the model has no repeated block; using its top-level children: %s",
                ", ".join(names),
            )
        calls_of = {name: self.calls(name) for name in names}
        return [
            LayerPath(layer=name, key=next(iter(calls[0].outputs), None) if calls else None)
            for name, calls in calls_of.items()
        ]

    def declared(self, words: Mapping[str, str], layer: str, key: str | None) -> str | None:
        """Return the declaration of an output; patterns that name its key take precedence."""
        by_key = {
            reading.key: word
            for pattern, word in reversed(list(words.items()))
            for reading in self._readings(pattern)
            if self._matches(reading.layer, layer) and reading.key in (None, key)
        }
        return by_key.get(key, by_key.get(None))

    def check_declared(self, words: Mapping[str, str]) -> None:
        """Raise ConfigError for declarations that match no layer or output of the model."""
        for pattern in words:
            matching = self._named(pattern)
            elements = [
                str(LayerPath(layer=name, key=key))
                for _, name in matching
                for call in self.calls(name)
                for key in call.outputs
            ]
            if not any(
                reading.key is None or str(LayerPath(layer=name, key=reading.key)) in elements
                for reading, name in matching
            ):
                hint = suggestion(pattern, elements or self.names)
                raise ConfigError(f"model.axes: {pattern!r} matches no layer; {hint}")

    def _check_excluded(self, selector: LayerSelector) -> None:
        for pattern in selector.exclude:
            if self._named(pattern):
                continue
            hint = suggestion(pattern, self.names)
            if is_exact(pattern):
                raise LayerError(f"layers.exclude: no layer {pattern!r}; {hint}")
            log.warning("layers.exclude: %r matches no layer; %s", pattern, hint)

    def _check_types(self, selector: LayerSelector) -> None:
        known_types = set().union(*(self._type_names(name) for name in self.names))
        for kind in selector.types:
            if kind not in known_types:
                kinds = sorted({type(module).__name__ for module in self.modules.values()})
                hint = suggestion(kind, kinds)
                raise LayerError(f"layers.types: the model has no layer of type {kind!r}; {hint}")


def _why_hidden(module: nn.Module) -> str:
    """Return why no attention of a module was observed, and what helps."""
    for inner in module.modules():
        config = getattr(inner, "config", None)
        chosen = str(getattr(config, "_attn_implementation", None) or "")
        if "flash" in chosen or "flex" in chosen:
            return (
                f"{chosen} cannot be observed; load the model with "
                "model.arguments.attn_implementation=sdpa"
            )
        code = getattr(type(inner).forward, "__code__", None)
        called = code.co_names if isinstance(code, CodeType) else ()
        for name in (*called, *type(inner).__module__.split(".")):
            for start, (library, remedy) in _KERNELS.items():
                if name.startswith(start):
                    return f"attention by {library} cannot be observed; {remedy}"
    return (
        "no attention was observed (scaled_dot_product_attention, nn.MultiheadAttention, or a "
        "softmax of a matrix product that multiplies values)"
    )
