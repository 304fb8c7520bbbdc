"""Shared state: mutable objects that deep copies of a model share.

A copy has its own modules and containers, but functions are not copied: a hook or a replaced
`forward` still refers to its closure, and every copy's code reads and writes the same module
globals, class attributes and default arguments. Copies that run at the same time would exchange
activations through these. The search is conservative: any mutable object that a forward pass can
reach outside the copy counts as shared state. Code of the libraries in `_TRUSTED` is not searched.
"""

import contextvars
import dis
import enum
import functools
import gc
import logging
import re
import sys
import threading
import types
import typing
import weakref
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TRUSTED = sys.stdlib_module_names | {
    "torch", "torchvision", "timm", "transformers", "einops", "numpy",
}  # fmt: skip
_CONSTANT = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(...),
    type(NotImplemented), enum.Enum, torch.dtype, torch.device, torch.layout, torch.memory_format,
    np.generic, np.dtype, np.ufunc, PurePath, re.Pattern, logging.Logger, threading.local,
    contextvars.ContextVar, types.BuiltinFunctionType, types.WrapperDescriptorType,
    types.MethodDescriptorType, types.MemberDescriptorType, types.GetSetDescriptorType,
    types.GenericAlias, types.UnionType, typing.TypeVar, typing.ParamSpec,
)  # fmt: skip
_NOT_ENTERED = (
    Tensor, types.FunctionType, type, types.ModuleType, types.CodeType, weakref.ReferenceType,
)  # fmt: skip
_NOT_IN_FORWARD = re.compile(r"_(state_dict|load_state_dict|backward)_|_is_full_backward_hook")
_NOT_CALLED = {"__init__", "__new__", "__init_subclass__", "__repr__", "__setstate__", "__del__"}
_BY_NAME = {"globals", "exec", "eval", "setattr", "delattr", "vars"}
"""Builtins that reach variables by a computed name."""


def shared_state(model: nn.Module) -> str:
    """Return what copies of a model would share besides its parameters; empty if nothing.

    The text completes "the model shares …", such as "the global variable ACTIVATIONS".
    """
    try:
        _Search().run(model)
    except _FoundError as shared:
        return str(shared)
    return ""


def copied_objects(model: nn.Module) -> Iterator[object]:
    """Yield every object that a deep copy reaches once, without entering functions and classes."""
    seen: dict[int, object] = {}  # holds the objects, so that no id is used twice
    todo: list[object] = [model]
    while todo:  # a loop: models nest deeper than Python's stack
        value = todo.pop()
        if id(value) in seen or isinstance(value, _CONSTANT):
            continue
        seen[id(value)] = value
        yield value
        if type(value) in weakref.ProxyTypes or isinstance(value, _NOT_ENTERED):
            continue
        if isinstance(value, nn.Module):
            todo += [item for key, item in vars(value).items() if not _NOT_IN_FORWARD.search(key)]
        else:
            todo += gc.get_referents(value)


class _FoundError(Exception):
    pass


class _Search:
    """Search of one model's objects and of the code that they may run."""

    def __init__(self) -> None:
        self._seen: dict[int, object] = {}  # holds the objects, so that no id is used twice
        self._owners: list[type | types.ModuleType] = []  # whose attributes code may name
        self._names = {"forward"}

    def run(self, model: nn.Module) -> None:
        for value in copied_objects(model):
            if type(value) in weakref.ProxyTypes:
                raise _FoundError("a weak reference")
            if isinstance(value, weakref.ReferenceType):
                if not isinstance(target := value(), (nn.Parameter, type(None))):
                    raise _FoundError(f"a weak reference to a {type(target).__name__}")
            elif isinstance(value, (types.FunctionType, type, types.ModuleType)):
                self._outside(value, value.__name__)
            else:
                self._class(type(value))
        done: set[tuple[int, str]] = set()
        while pairs := [
            (owner, name)
            for owner in self._owners
            for name in vars(owner)
            if (id(owner), name) not in done and self._used(owner, name)
        ]:  # until newly found code names no further attribute
            done.update((id(owner), name) for owner, name in pairs)
            for owner, name in pairs:
                self._outside(vars(owner)[name], f"{owner.__name__}.{name}")

    def _used(self, owner: type | types.ModuleType, name: str) -> bool:
        """Return whether a forward pass may use an attribute of a class or module."""
        if name in self._names or isinstance(owner, types.ModuleType):
            return name in self._names
        overrides = any(
            name in vars(base)
            for base in owner.__mro__[1:]
            if _trusted(base.__module__) and base not in (object, nn.Module)
        )
        special = name.startswith("__") and name.endswith("__") and callable(vars(owner)[name])
        return (overrides or special) and name not in _NOT_CALLED

    def _first_visit(self, value: object) -> bool:
        if id(value) in self._seen:
            return False
        self._seen[id(value)] = value
        return True

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            if not _trusted(base.__module__) and self._first_visit(base):
                for name in ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__"):
                    if name in vars(base):
                        raise _FoundError(f"state that {base.__name__}.{name} does not copy")
                self._owners.append(base)

    def _outside(self, value: Any, where: str) -> None:
        """Inspect an object that code reaches and that is not copied."""
        if isinstance(value, _CONSTANT) or not self._first_visit(value):
            return
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.ModuleType):
            if not _trusted(value.__name__):
                self._owners.append(value)
        elif (parts := _parts(value)) is not None:
            for part in parts:
                self._outside(part, where)
        elif isinstance(value, nn.Module) or not (
            callable(value) and _trusted(type(value).__module__)
        ):
            raise _FoundError(f"{where} ({type(value).__name__})")

    def _function(self, function: types.FunctionType) -> None:
        name, space = function.__qualname__, function.__globals__
        trusted = _trusted(space.get("__name__", ""))
        for variable, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                value = cell.cell_contents
            except ValueError:  # empty
                continue
            if not trusted or isinstance(value, (types.FunctionType, nn.Module)):
                self._outside(value, f"the variable {variable} of {name}")
        if trusted:
            return
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for value in (*defaults, *vars(function).values()):
            self._outside(value, f"a default or attribute of {name}")
        self._code(function.__code__, space, name)

    def _code(self, code: types.CodeType, space: dict[str, Any], name: str) -> None:
        """Inspect every variable that code names."""
        self._names.update(code.co_names)
        stores_attribute, before = False, ""
        for step in dis.get_instructions(code):
            kind, variable = step.opname, step.argval
            if kind in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                raise _FoundError(f"the global variable {variable}, which {name} sets")
            if kind == "IMPORT_NAME" and not _trusted(variable or "."):
                raise _FoundError(f"the module {variable}, which {name} imports")
            if kind in ("LOAD_GLOBAL", "LOAD_NAME"):
                if variable in space:
                    self._outside(space[variable], f"the global variable {variable}")
                elif variable in _BY_NAME:
                    raise _FoundError(f"state that {name} reaches through {variable}()")
            if kind in ("STORE_ATTR", "DELETE_ATTR"):
                stores_attribute = True
                if before in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"):
                    raise _FoundError(f"the attribute {variable}, which {name} sets")
            before = kind
        of_class = {"type", "__class__", "cls"} & {*code.co_names, *code.co_varnames}
        if stores_attribute and of_class:
            raise _FoundError(f"a class attribute, which {name} may set")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant, space, name)


def _parts(value: Any) -> Iterable[object] | None:
    """Return the objects behind a value that has no state of its own; None for other values."""
    match value:
        case tuple() | frozenset():
            return value
        case types.MappingProxyType():
            return value.values()
        case types.MethodType():
            return value.__self__, value.__func__
        case staticmethod() | classmethod():
            return (value.__func__,)
        case property():
            return value.fget, value.fset, value.fdel
        case functools.partial():
            return value.func, *value.args, *value.keywords.values()
        case functools.cached_property():
            return (value.func,)
        case functools._lru_cache_wrapper():
            return (value.__wrapped__,)
    return None


def _trusted(module: str) -> bool:
    return module.partition(".")[0] in _TRUSTED
