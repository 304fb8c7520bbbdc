"""Loading reports: the differences between a model and its weights file.

Most libraries load weights with `Module.load_state_dict`. `recorded_loads` records those calls, so
sources need not report the weights that a library, an entry point or a user's class loads.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.common.errors import listed

log = logging.getLogger(__name__)
_patching = threading.RLock()

Slot = tuple[nn.Module, str]
"""Module and attribute of a parameter or buffer."""


@dataclass(frozen=True, kw_only=True)
class LoadingReport:
    """Differences between a weights file and a model, as names of parameters and buffers."""

    missing_keys: Sequence[str] = ()  # in the model only; they keep their initial values
    unexpected_keys: Sequence[str] = ()  # in the file only; they are unused
    mismatched_keys: Sequence[str] = ()  # of other shapes; a subset of the missing ones
    dtype: str = ""  # of the file's weights if not float32, such as `bfloat16`

    def log(self, model: str) -> None:
        """Log one line for each kind of difference."""
        missing = [name for name in self.missing_keys if name not in {*self.mismatched_keys}]
        for level, fact, names in (
            (logging.WARNING, "not in the weights file; keeping initial values", missing),
            (logging.WARNING, "different shape in the weights file; keeping initial values",
             self.mismatched_keys),
            (logging.INFO, "in the weights file but unused", self.unexpected_keys),
        ):  # fmt: skip
            if names:
                log.log(level, "model.weights: %s: %s: %s", model, fact, listed(names))
        if self.dtype:
            log.info("model.weights: %s: cast from %s to float32", model, self.dtype)


@dataclass
class RecordedLoads:
    """Record of the tensors that `Module.load_state_dict` has loaded.

    Tensors are identified by module and attribute: names change if a model is wrapped or taken
    apart after loading.
    """

    _loaded: set[Slot] = field(default_factory=set)
    _missing: set[Slot] = field(default_factory=set)
    _tensors: set[Tensor] = field(default_factory=set)
    _unexpected: list[str] = field(default_factory=list)
    _dtypes: set[str] = field(default_factory=set)

    def add(self, module: nn.Module, state: Mapping[str, Any], result: Any) -> None:
        """Record one call of `load_state_dict` and its result."""
        missing = set(result.missing_keys)
        for name, slot, tensor in _slots(module):
            if name in missing:
                self._missing.add(slot)
            else:
                self._loaded.add(slot)
                self._tensors.add(tensor)
        self._unexpected += result.unexpected_keys
        current = module.state_dict()
        self._dtypes |= {
            str(value.dtype).removeprefix("torch.")
            for name, value in state.items()
            if getattr(value, "is_floating_point", bool)()
            and str(getattr(current.get(name), "dtype", "")) != "torch.float64"  # not cast
        }

    def report(
        self, module: nn.Module, rebuild: Callable[[], Any], *, always: bool
    ) -> LoadingReport:
        """Return the report of a finished model.

        Tensors without a recorded load may still be weights: loaded in another way, or computed
        from others (fused layers). They are missing if they differ in the `module` of another
        seed that `rebuild` returns; `always` compares even if no load was recorded.
        """
        missing: list[str] = []
        unknown: list[str] = []
        for name, slot, tensor in _slots(module):
            if slot not in self._loaded and tensor not in self._tensors:
                (missing if slot in self._missing else unknown).append(name)
        if unknown and (always or self._loaded):
            tensors, others = ({n: x for n, _, x in _slots(m)} for m in (module, rebuild().module))
            missing += [
                name
                for name in unknown
                if name not in others or not torch.equal(tensors[name], others[name])
            ]
        return LoadingReport(
            missing_keys=missing,
            unexpected_keys=self._unexpected,
            dtype=", ".join(sorted(self._dtypes)) if self._dtypes - {"float32"} else "",
        )


def _slots(module: nn.Module) -> Iterator[tuple[str, Slot, Tensor]]:
    """Yield name, slot and tensor of every entry of the state dict."""
    for path, owner in module.named_modules(remove_duplicate=False):
        volatile: set[str] = getattr(owner, "_non_persistent_buffers_set", set())
        for attribute, tensor in (
            *owner.named_parameters(recurse=False),
            *owner.named_buffers(recurse=False),
        ):
            if attribute not in volatile:
                yield f"{path}.{attribute}" if path else attribute, (owner, attribute), tensor


@contextmanager
def recorded_loads() -> Iterator[RecordedLoads]:
    """Record every call of `Module.load_state_dict` while the block runs."""
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


def short_types(module: nn.Module) -> dict[str, torch.dtype]:
    """Return the type of every parameter and buffer that is a 16-bit float."""
    short = (torch.bfloat16, torch.float16)
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: tensor.dtype for name, tensor in named if tensor.dtype in short}


def cast(module: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Cast the named parameters and buffers."""
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if name in types:
            tensor.data = tensor.data.to(types[name])
