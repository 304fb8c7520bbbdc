"""Reader of tensors in `torch.save` files with other Python objects; it runs no code of the file.

`torch.load(weights_only=True)` rejects a file with any object of an unknown class: the options of a
training script, a path, a configuration. Here torch reads the file with an unpickler that replaces
every global of the pickle by a `Placeholder`, except those that tensors consist of: it imports
nothing that the file names.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.common.errors import WeightsError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The magic number of torch.save before torch 1.6."""

_REBUILD = "torch._utils._rebuild_"
_RUNS_CODE = {
    "builtins.__import__", "builtins.compile", "builtins.eval", "builtins.exec", "builtins.open",
    "commands", "ctypes", "importlib", "nt", "os", "posix", "pty", "runpy", "shutil", "socket",
    "subprocess", "sys", "webbrowser",
}  # fmt: skip


class Placeholder(dict[Any, Any]):
    """Inert replacement of an object; it keeps only the items of a dictionary."""

    __slots__ = ()
    type_name = ""
    dump_patches = False  # torch compares the stored source text of a module's class

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Ignore an element of a list or set subclass."""

    extend = add = append

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        """Return a placeholder for the result of a function that another call returned."""
        return Placeholder()

    __hash__ = object.__hash__  # type: ignore[assignment] # hashable by identity
    __eq__ = object.__eq__


class _Attribute(Placeholder):
    """`getattr` on a placeholder returns a placeholder."""

    __slots__ = ()

    def __new__(cls, owner: Any, name: str) -> Any:
        return _placeholder_type(f"{getattr(owner, 'type_name', '')}.{name}")


def _placeholder_type(name: str) -> type[Placeholder]:
    return type("Placeholder", (Placeholder,), {"__slots__": (), "type_name": name})


@contextmanager
def weights_only_forced(value: str) -> Iterator[None]:
    """Set torch's variable that makes every `torch.load` read tensors only ("1") or not ("0")."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def read_with_placeholders(path: Path) -> tuple[Any, list[str]]:
    """Return the content of a file, and the full names of the classes and functions replaced."""
    import torch

    rebuild: Any = torch._utils
    storage = SimpleNamespace(dtype=torch.uint8)
    # Functions of this call only: a pickle may set attributes of what it names.
    allowed: Mapping[str, Any] = {
        "builtins.getattr": _Attribute, "collections.OrderedDict": OrderedDict,
        "torch.UntypedStorage": storage, "torch.storage.UntypedStorage": storage,
        f"{_REBUILD}tensor": lambda *values: rebuild._rebuild_tensor(*values),
        f"{_REBUILD}tensor_v2": lambda *values: rebuild._rebuild_tensor_v2(*values),
        f"{_REBUILD}tensor_v3": lambda *values: rebuild._rebuild_tensor_v3(*values),
        f"{_REBUILD}parameter": lambda data, *_: data,
        f"{_REBUILD}parameter_with_state": lambda data, *_: data,
        **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    }  # fmt: skip
    replaced: dict[str, type[Placeholder]] = {}

    class Unpickler(pickle._Unpickler):
        """In Python: for C's, a file of a few bytes could take all memory for its memo."""

        def find_class(self, module: str, name: str) -> Any:
            module = "builtins" if module == "__builtin__" else module  # of Python 2
            full_name = f"{module}.{name}"
            if full_name in _RUNS_CODE or module.partition(".")[0] in _RUNS_CODE:
                raise WeightsError(
                    f"model.weights: {path} was not loaded: it calls {full_name}, which can run "
                    "arbitrary code; do not use this file"
                )
            if full_name in allowed:
                return allowed[full_name]
            return replaced.setdefault(full_name, _placeholder_type(full_name))

    module = SimpleNamespace(
        __name__="placeholders", Unpickler=Unpickler, load=lambda *a, **k: Unpickler(*a, **k).load()
    )
    # weights_only=True has refused TorchScript and tar files before.
    with path.open("rb") as file, weights_only_forced("0"):
        content = torch.load(
            file, map_location="cpu", pickle_module=module, weights_only=False, errors="replace"
        )
    return content, list(replaced)
