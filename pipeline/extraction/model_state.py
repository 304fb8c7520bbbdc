"""Model state: what forward passes leave in a model, and its reset.

Recurrent and spiking networks keep values in buffers and attributes. They are reset after every
forward pass, so that rows do not depend on earlier images.
"""

import types
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

Place = tuple[str, str]
"""Name of a module, and of a buffer or attribute of it."""
_OF_TORCH = vars(nn.Module()).keys()
_DEPTH = 8  # of containers within containers
_NOT_ENTERED = (nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType)


class ModelState:
    """Values of a model's buffers and attributes; the end of a `with` block resets them."""

    def __init__(self, model: nn.Module, places: Collection[Place] | None = None) -> None:
        """Remember the values at `places`, by default all."""
        self._model = model
        self._parameters = _parameters(model)
        values, seen = _values(model), set[int]()
        self.places = values.keys() if places is None else places
        self._kept = {p: _Kept(values[p], seen, _DEPTH) for p in self.places if p in values}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        modules = dict(self._model.named_modules()) if self.places else {}
        for place in self.places:
            module, key = modules[place[0]], place[1]
            owner: Any = module._buffers if key in module._buffers else vars(module)
            if place in self._kept:
                owner[key] = self._kept[place].reset()
            else:
                owner.pop(key, None)

    def keep_changed(self) -> None:
        """Reset only what has changed since; nothing if parameters have (they were built)."""
        values, built = _values(self._model), _parameters(self._model) != self._parameters
        self.places = {
            place
            for place in {**values, **self._kept}
            if not built
            and (place not in self._kept or not self._kept[place].same(values.get(place)))
        }
        self._kept = {place: kept for place, kept in self._kept.items() if place in self.places}


class _Kept:
    """A value, with a copy of what it contains."""

    def __init__(self, value: Any, seen: set[int], depth: int) -> None:
        self._value = value
        self._copy: Any = None
        if isinstance(value, nn.Parameter) or id(value) in seen or not depth:
            return
        if isinstance(value, Tensor):
            if not value.is_inference():
                self._copy = value._version, value.detach().clone()
        elif isinstance(value, np.ndarray):
            self._copy = value.copy()
        elif (items := _items(value)) is not None:
            seen.add(id(value))
            self._copy = [(key, _Kept(item, seen, depth - 1)) for key, item in items]

    def same(self, value: Any) -> bool:
        """Return whether a value is this one, with the same contents."""
        if value is not self._value or self._copy is None:
            return value is self._value
        if isinstance(value, Tensor):
            return bool(value._version == self._copy[0])
        if isinstance(value, np.ndarray):
            return bool(value.tobytes() == self._copy.tobytes())
        items = [*(_items(value) or ())]
        return len(items) == len(self._copy) and all(
            (key is other or (isinstance(key, (str, int)) and key == other)) and kept.same(item)
            for (key, item), (other, kept) in zip(items, self._copy, strict=True)
        )

    def reset(self) -> Any:
        """Return the value, with its former contents."""
        value = self._value
        if self.same(value):
            return value
        if isinstance(value, Tensor):
            value.detach().resize_(self._copy[1].shape).copy_(self._copy[1])
            self._copy = value._version, self._copy[1]
        elif isinstance(value, np.ndarray):
            value[...] = self._copy
        else:
            items = {key: kept.reset() for key, kept in self._copy}
            if isinstance(value, (list, deque)):
                value.clear()
                value.extend(items.values())
            elif not isinstance(value, tuple):
                content = value if isinstance(value, dict) else vars(value)
                content.clear()
                content.update(items)
        return value


def _items(value: Any) -> Iterable[tuple[Any, Any]] | None:
    if isinstance(value, (list, tuple, deque)):
        return enumerate(value)
    if hasattr(value, "__dict__") and not isinstance(value, (*_NOT_ENTERED, dict)):
        value = vars(value)
    return value.items() if isinstance(value, dict) else None


def _values(model: nn.Module) -> dict[Place, Any]:
    return {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in {**vars(module), **module._buffers}.items()
        if key not in _OF_TORCH
    }


def _parameters(model: nn.Module) -> list[tuple[int, int]]:
    """Return identity and version of each; those made in inference mode have no version."""
    return [(id(p), 0 if p.is_inference() else p._version) for p in model.parameters()]
