"""Reader of tensors in `torch.save` files with other Python objects; it runs no code of the file.

`torch.load(weights_only=True)` rejects a file with any object of an unknown class: the options of a
training script, a path, a configuration. This reader replaces every global of the pickle by a
`Placeholder`: it imports nothing, calls only this module's constructors, and creates tensors after
unpickling.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

_REBUILD = "torch._utils._rebuild_"
_TENSORS = {f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2", f"{_REBUILD}tensor_v3"}
_PARAMETERS = {f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state"}
_STORAGES = {
    "BFloat16Storage": "bfloat16", "BoolStorage": "bool", "ByteStorage": "uint8",
    "CharStorage": "int8", "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "IntStorage": "int32", "LongStorage": "int64", "ShortStorage": "int16",
    "UntypedStorage": "uint8", "storage.UntypedStorage": "uint8",
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The magic number of torch.save before torch 1.6."""

_RUNS_CODE = {
    "builtins.__import__", "builtins.compile", "builtins.eval", "builtins.exec", "builtins.open",
    "commands", "ctypes", "importlib", "nt", "os", "posix", "pty", "runpy", "shutil", "socket",
    "subprocess", "sys", "webbrowser",
}  # fmt: skip


class Placeholder(dict[Any, Any]):
    """Inert replacement of an object: its constructor's arguments, its items and its state."""

    __slots__ = ("args", "state")
    type_name = ""

    def __init__(self, *args: Any, **_: Any) -> None:
        """Store the arguments; those of an OrderedDict are its items."""
        super().__init__(*(args if self.type_name == "collections.OrderedDict" else ()))
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, _: Any) -> None:
        """Ignore an element of a list subclass."""

    def extend(self, _: Any) -> None:
        """Ignore elements of a list subclass."""

    add = append

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        """Return a placeholder for the result of a function that another call returned."""
        return Placeholder()

    __hash__ = object.__hash__  # type: ignore[assignment] # hashable by identity
    __eq__ = object.__eq__

    @property
    def _metadata(self) -> Any:
        """The module versions of a state dict."""
        state = getattr(self, "state", None)
        return state.get("_metadata", {}) if isinstance(state, dict) else {}


class _Attribute(Placeholder):
    """`getattr` on a placeholder returns a placeholder."""

    __slots__ = ()

    def __new__(cls, owner: Any, name: str) -> Any:
        return _placeholder_type(f"{getattr(owner, 'type_name', '')}.{name}")


def _placeholder_type(name: str) -> type[Placeholder]:
    if name == "builtins.getattr":
        return _Attribute
    return type("Placeholder", (Placeholder,), {"__slots__": (), "type_name": name})


class CodeError(pickle.UnpicklingError):
    """A pickle that names a function which could run arbitrary code."""


class _Unpickler(pickle._Unpickler):
    """Unpickler that replaces every global and storage by a `Placeholder`.

    The C unpickler would let a file of a few bytes allocate all memory for its memo.
    """

    def __init__(self, file: BinaryIO, types: dict[str, type[Placeholder]]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._types = types
        self.storages: dict[str, Placeholder] = {}

    def find_class(self, module: str, name: str) -> type[Placeholder]:
        module = "builtins" if module == "__builtin__" else module  # of Python 2
        full_name = f"{module}.{name}"
        if full_name in _RUNS_CODE or module.partition(".")[0] in _RUNS_CODE:
            raise CodeError(full_name)
        if full_name not in self._types:
            self._types[full_name] = _placeholder_type(full_name)
        return self._types[full_name]

    def persistent_load(self, saved_id: Any) -> Any:
        if saved_id[0] == "module":  # a class, with its source text
            return saved_id[1]
        storage = Placeholder(*saved_id)
        self.storages.setdefault(str(saved_id[2]), storage)
        return storage


class TensorReader:
    """The content of one file, with a `Placeholder` for every object.

    Attributes:
        content: placeholders, dicts, lists, tuples, strings and numbers; `tensor` converts the
            placeholders of tensors.
        types: full name of a class or function → its placeholder type.
    """

    def __init__(self, path: Path) -> None:
        """Read the file's structure."""
        self.types: dict[str, type[Placeholder]] = {}
        self._flat: dict[str, Tensor] = {}
        self._tensors: dict[int, Tensor] = {}
        self._bytes: Callable[[str], bytes]
        if zipfile.is_zipfile(path):
            self._open_zip(path)
        else:
            self._open_legacy(path)

    def _open_zip(self, path: Path) -> None:
        archive = zipfile.ZipFile(path)
        (pickled,) = [
            name
            for name in archive.namelist()
            if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        root = pickled.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise pickle.UnpicklingError("big-endian files are not supported")
        self._bytes = lambda key: archive.read(f"{root}data/{key}")
        self.content = _Unpickler(io.BytesIO(archive.read(pickled)), self.types).load()

    def _open_legacy(self, path: Path) -> None:
        """Read the format before torch 1.6: five pickles, then every storage after its length."""
        with path.open("rb") as file:
            for _ in ("magic number", "protocol version", "system"):
                _Unpickler(file, self.types).load()
            unpickler = _Unpickler(file, self.types)
            self.content = unpickler.load()
            extents = {}
            for key in _Unpickler(file, self.types).load():
                (count,) = struct.unpack("<q", file.read(8))
                extents[str(key)] = (
                    file.tell(),
                    count * _dtype(unpickler.storages[str(key)].args[1]).itemsize,
                )
                file.seek(extents[str(key)][1], io.SEEK_CUR)

        def read(key: str) -> bytes:
            offset, size = extents[key]
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)

        self._bytes = read

    def tensor(self, value: object) -> Tensor | None:
        """Return the tensor of a placeholder, or None if the value is not a tensor."""
        if not isinstance(value, Placeholder):
            return None
        if value.type_name in _PARAMETERS:
            return self.tensor(value.args[0])
        if value.type_name not in _TENSORS:
            return None
        if id(value) not in self._tensors:  # the content keeps it alive
            storage, offset, size, stride, *more = value.args
            flat = self._storage(storage)
            if value.type_name.endswith("_v3"):
                flat = flat.view(_dtype(more[2]))
            self._tensors[id(value)] = flat.as_strided(size, stride, offset)
        return self._tensors[id(value)]

    def _storage(self, storage: Placeholder) -> Tensor:
        import torch

        _, kind, key, _, _, *view = storage.args
        key = str(key)
        if key not in self._flat:
            data = bytearray(self._bytes(key))
            empty = torch.empty(0, dtype=torch.uint8)
            self._flat[key] = torch.frombuffer(data, dtype=torch.uint8) if data else empty
        flat = self._flat[key].view(_dtype(kind))
        if view and view[0] is not None:  # a slice of a storage, in the legacy format
            _, offset, count = view[0]
            flat = flat[offset : offset + count]
        return flat


def _dtype(kind: type[Placeholder]) -> Any:
    """Return the dtype of `torch.FloatStorage`, `torch.float8_e5m2`, …."""
    import torch

    name = kind.type_name.removeprefix("torch.")
    dtype = vars(torch).get(_STORAGES.get(name, name))
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError(f"{kind.type_name} is not a numeric type")
    return dtype
