"""Patterns: the addresses in a model that names, globs and expressions stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from pipeline.foundation.errors import LayerError, suggestion
from pipeline.layers.addresses import OUTPUT, Address
from pipeline.layers.selector import LayerSelector, is_exact, matches, readings
from pipeline.layers.trace import LayerCall, Trace

_FROM_END = re.compile(r"-[1-9]\d*")


class Patterns:
    """The names of one model's layers, and their calls in the dry batch.

    Attributes:
        names: every dotted name, also second names of the same module.
        modules: by name; the whole model stands under the name of its output.
    """

    def __init__(self, module: nn.Module, traced: Trace) -> None:
        """Take a model and what it did with the dry batch."""
        every = dict(module.named_modules(remove_duplicate=False))
        self.names: list[str] = [name for name in every if name]
        self.modules = {name: every[name] for name in self.names}
        self.modules[traced.model.layer] = module
        first: dict[int, str] = {}
        # A module may stand under several names; it is recorded under its first.
        self._same = {name: first.setdefault(id(m), name) for name, m in self.modules.items()}
        self._traced = traced
        self._calls: dict[str, list[LayerCall]] = {}
        for call in (*traced.calls, traced.model):
            self._calls.setdefault(call.layer, []).append(call)

    def calls(self, name: str) -> Sequence[LayerCall]:
        """Return the calls of a layer, by any of its names; none where it is not reached."""
        return self._calls.get(self._same[name], [])

    def addresses(self, selector: LayerSelector) -> dict[Address, bool]:
        """Return address → whether it was named exactly.

        Raises:
            LayerError: when a name, pattern or type is not there, or nothing is left.
        """
        self._check_types(selector)
        wanted: dict[Address, bool] = {}
        for pattern in map(self._from_end, selector.include):
            if is_exact(pattern):
                address = Address.parse(pattern, list(self.modules))
                if address.layer not in self.modules:
                    raise LayerError(
                        f"layers.include: no layer {pattern!r}; "
                        f"{suggestion(address.layer, self.names)}"
                    )
                wanted[address] = True
                continue
            for address in self._matching(pattern):
                name = address.layer
                if name == self._same[name] and self._kept(selector, name):
                    wanted.setdefault(address, False)
        if not wanted:
            raise LayerError("layers: include, types and exclude together leave no layer")
        return wanted

    def _matching(self, pattern: str) -> list[Address]:
        """Return what a glob or an expression finds.

        Where its end may be an element's key or a set of characters, it is the key if a match has
        such an element.

        Raises:
            LayerError: when it finds nothing.
        """
        *whole, elements = [
            [replace(reading, layer=name) for name in self.names if matches(reading.layer, name)]
            for reading in readings(pattern)
        ]
        present = [address for address in elements if self._has(address)]
        matching = present or (whole[0] if whole else []) or elements
        if matching:
            return matching
        raise LayerError(
            f"layers.include: {pattern!r} matches no layer; {suggestion(pattern, self.names)}"
        )

    def _has(self, address: Address) -> bool:
        """Tell whether there is a tensor at an address, where its layer is reached."""
        made = self.calls(address.layer)
        calls = made if address.call is None else made[address.call :][:1]
        return any(
            address.key in (call.inputs if address.input else call.outputs) for call in calls
        )

    def _from_end(self, pattern: str) -> str:
        """Return the address that `last`, `penultimate` or a number from the end stands for.

        Of the numbered ones only layers without layers inside count, in execution order. Other
        patterns, and layers of such a name, are returned as they are.

        Raises:
            LayerError: when the model has no such layer.
        """
        number = -1 if pattern == "last" else int(pattern) if _FROM_END.fullmatch(pattern) else 0
        if pattern in self.modules or not (number or pattern == "penultimate"):
            return pattern
        if pattern == "penultimate":
            if self._traced.penultimate is None:
                keys = ", ".join(f"{OUTPUT}[{key}]" for key in self._traced.model.outputs)
                raise LayerError(
                    "layers.include: penultimate: the model returns several tensors; name the "
                    f"layer, or choose {keys or 'one of its own'}"
                )
            return str(self._traced.penultimate)
        leaves = [c for c in self._traced.calls if not any(self.modules[c.layer].children())]
        if len(leaves) < -number:
            raise LayerError(
                f"layers.include: {pattern}: no {-number} layers reached in a forward pass"
            )
        found = leaves[number]
        several = len(self.calls(found.layer)) > 1
        return str(Address(layer=found.layer, call=found.call if several else None))

    def _type_names(self, name: str) -> set[str]:
        return {kind.__name__ for kind in type(self.modules[name]).__mro__}

    def _kept(self, selector: LayerSelector, name: str) -> bool:
        if selector.types and not self._type_names(name) & set(selector.types):
            return False
        return not any(matches(pattern, name) for pattern in selector.exclude)

    def _check_types(self, selector: LayerSelector) -> None:
        there = set().union(*(self._type_names(name) for name in self.names))
        for kind in selector.types:
            if kind not in there:
                kinds = sorted({type(module).__name__ for module in self.modules.values()})
                near = suggestion(kind, kinds)
                raise LayerError(f"layers.types: the model has no layer of type {kind!r}; {near}")
