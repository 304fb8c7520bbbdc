"""Loading reports: what of a model came from its weights' file, and what did not.

Most libraries load weights with `Module.load_state_dict`. `recorded_loads` watches those calls, so
that a source need not report what a library, an entry point or a user's class has loaded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
_patching = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class LoadingReport:
    """How a weights file and a model differ, as names of parameters and buffers.

    Attributes:
        missing_keys: of the model; they did not come from the file and keep initial values.
        unexpected_keys: in the file, but not in the model; they are unused.
        mismatched_keys: in both, with different shapes (a subset of the missing ones).
        dtype: of the file's weights where it is not float32, such as `bfloat16`; else empty.
    """

    missing_keys: Sequence[str] = ()
    unexpected_keys: Sequence[str] = ()
    mismatched_keys: Sequence[str] = ()
    dtype: str = ""

    def log(self, model: str) -> None:
        """Log every kind of difference in one line each."""
        missing = [name for name in self.missing_keys if name not in {*self.mismatched_keys}]
        for level, what, names in (
            (logging.WARNING, "not in the weights' file, initial values are kept", missing),
            (logging.WARNING, "of another shape in the weights' file, initial values are kept",
             self.mismatched_keys),
            (logging.INFO, "in the weights' file but unused", self.unexpected_keys),
        ):  # fmt: skip
            if names:
                log.log(level, "model.weights: %s: %s: %s", model, what, listed(names))
        if self.dtype:
            log.info("model.weights: %s: cast from %s to float32", model, self.dtype)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


@dataclass
class RecordedLoads:
    """What `Module.load_state_dict` has filled, by module and attribute.

    Names would not do: a model may be wrapped or taken apart after its weights are loaded.
    """

    _loaded: dict[tuple[int, str], object] = field(default_factory=dict)
    _missing: dict[tuple[int, str], object] = field(default_factory=dict)
    _tensors: dict[int, object] = field(default_factory=dict)
    _unexpected: list[str] = field(default_factory=list)
    _dtypes: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self._loaded)

    def add(self, module: nn.Module, state: Mapping[str, Any], result: Any) -> None:
        """Record one call of `load_state_dict` and what it returned."""
        missing = set(result.missing_keys)
        for name, owner, attribute, tensor in _slots(module):
            slot = (id(owner), attribute)
            if name in missing:
                self._missing.setdefault(slot, owner)
            else:
                self._loaded[slot] = owner  # keeps it alive: another could get its id
                self._tensors[id(tensor)] = tensor
        self._unexpected += result.unexpected_keys
        own = module.state_dict()
        self._dtypes |= {
            str(value.dtype).removeprefix("torch.")
            for name, value in state.items()
            if getattr(value, "is_floating_point", bool)()
            and str(getattr(own.get(name), "dtype", "")) != "torch.float64"  # stays as it is
        }

    def report(self, module: nn.Module) -> tuple[LoadingReport, list[str]]:
        """Return the report of a finished model, and the tensors of which no load is known.

        The latter may still hold weights: of a library with a way of its own to load them, or
        computed from others (fused layers).
        """
        missing: list[str] = []
        unknown: list[str] = []
        for name, owner, attribute, tensor in _slots(module):
            slot = (id(owner), attribute)
            if slot not in self._loaded and id(tensor) not in self._tensors:
                (missing if slot in self._missing else unknown).append(name)
        return LoadingReport(
            missing_keys=missing,
            unexpected_keys=self._unexpected,
            dtype=", ".join(sorted(self._dtypes)) if self._dtypes - {"float32"} else "",
        ), unknown


def _slots(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Yield name, owner, attribute and tensor of everything that a state dict holds."""
    for path, owner in module.named_modules(remove_duplicate=False):
        volatile: set[str] = getattr(owner, "_non_persistent_buffers_set", set())
        for attribute, tensor in (
            *owner.named_parameters(recurse=False),
            *owner.named_buffers(recurse=False),
        ):
            if attribute not in volatile:
                yield f"{path}.{attribute}" if path else attribute, owner, attribute, tensor


@contextmanager
def recorded_loads() -> Iterator[RecordedLoads]:
    """Record every call of `Module.load_state_dict` while the block runs."""
    from torch import nn

    loads = RecordedLoads()
    with _patching:
        original = nn.Module.load_state_dict

        def load_state_dict(
            self: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any
        ) -> Any:
            result = original(self, state_dict, *args, **kwargs)
            loads.add(self, state_dict, result)
            return result

        nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
        try:
            yield loads
        finally:
            nn.Module.load_state_dict = original  # type: ignore[method-assign]


def differing(one: nn.Module, other: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names whose tensors differ between two builds of a model with different seeds."""
    import torch

    states = [{n: t for n, _, _, t in _slots(module)} for module in (one, other)]
    return [
        name
        for name in names
        if name not in states[1] or not torch.equal(states[0][name], states[1][name])
    ]


def cast_to_float32(module: nn.Module) -> str:
    """Cast a module of short floating types to float32; return the types, empty if it had none."""
    import torch

    short = {
        str(tensor.dtype).removeprefix("torch.")
        for _, _, _, tensor in _slots(module)
        if tensor.dtype in (torch.bfloat16, torch.float16)
    }
    if short:
        module.float()
    return ", ".join(sorted(short))
