"""Weight files: identified by their content and read without running code."""

import json
import logging
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.errors import ConfigError, WeightsError, reraised, suggestion
from pipeline.models.weights.tensor_reader import LEGACY_MAGIC, Placeholder, read_with_placeholders

log = logging.getLogger(__name__)

StateDict = OrderedDict[str, Any]
"""Names → tensors; a checkpoint may also contain nested state dicts."""

RESAVE = "save the weights alone: torch.save(model.state_dict(), PATH)"
_AGAIN = "; the download failed: download it again"
_FOREIGN = {
    rb"\0{8}": f"filled with zeros{_AGAIN}",
    rb"version https://git-lfs": "a Git LFS pointer, not the weights; run git lfs pull",
    rb"\x89HDF": "an HDF5 file (Keras?), not written by torch.save",
    rb"\x1f\x8b": "compressed with gzip; unpack it with gunzip",
    rb"BZh": "compressed with bzip2; unpack it with bunzip2",
    rb"\xfd7zXZ": "compressed with xz; unpack it with unxz",
    rb"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it with unzstd",
    rb"Rar!": "a RAR archive; unpack it",
    rb"7z\xbc\xaf": "a 7-Zip archive; unpack it",
    rb"GGUF": "a GGUF file, whose quantized weights do not fit a torch module",
    rb"\x93NUMPY": "a NumPy array, not a state dict",
    rb"\xff\xd8\xff": "a JPEG image",
    rb"\x89PNG": "a PNG image",
    rb"%PDF": "a PDF document",
    rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head|script)": f"a web page{_AGAIN}",
    rb"(\xef\xbb\xbf)?\s*[{\[]": "a JSON file; use the weights file itself",
    rb".{4}TFL3": "a TensorFlow Lite model",
    rb"\x08(.\x12|.*onnx)": "an ONNX model, whose weights do not have a torch module's names",
    rb".{257}ustar": "a tar archive; unpack it and use the weights file in it",
    rb"\x80(?!.{,53}" + re.escape(LEGACY_MAGIC.to_bytes(10, "little")) + rb")":
        f"a pickle that torch.save did not write; load it with its code and {RESAVE}",
    rb'.{8}\{"': f"truncated{_AGAIN}",  # the header of safetensors
    rb"[^\x80]": "not a file of torch.save or safetensors",
}  # fmt: skip
"""Pattern of a file's first bytes → what it is, and the remedy; the first that matches counts."""
_MAX_DEPTH = 8


def read_state_dict(path: Path, key: str = "") -> StateDict:
    """Read the state dicts of a file without running its code.

    Args:
        key: key of a state dict in a checkpoint, `.` between nested keys; empty reads everything.
    """
    with reraised(f"model.weights: {path} is damaged or not a state dict", WeightsError):
        parts = keyed(_read(path))
    if key in parts:
        return parts[key]
    names = [name for name in parts if name]
    raise WeightsError(f"model.key: {path} has no {key!r}; {suggestion(key, names)}")


def _read(path: Path) -> StateDict:
    if not path.exists():
        raise ConfigError(f"model.weights: {path}: no such file")
    if not path.is_file():
        raise WeightsError(f"model.weights: {path}: not a regular file")
    if path.name.endswith(".index.json"):  # of weights in several files
        names = json.loads(path.read_bytes())["weight_map"].values()
        parts = [_read(path.with_name(name)) for name in sorted({*names})]
        return StateDict(item for part in parts for item in part.items())
    with path.open("rb") as file:
        head = file.read(512)
    # safetensors: the length of a header in JSON, which may look like a signature
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return StateDict(load_file(path))
    if problem := _foreign(path, head):
        raise WeightsError(f"model.weights: {path} is {problem}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with path.open("rb") as file:  # given a path, torch.load depends on its ending
                content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            content, names = read_with_placeholders(path)
            foreign = [name for name in names if not name.startswith(("torch.", "collections."))]
            log.info("model.weights: %s also contains objects, which are ignored: %s", path,
                     ", ".join(foreign))  # fmt: skip
    state = _state_dicts(content, {})
    if isinstance(state, OrderedDict):
        return state
    values = content.values() if type(content) is dict else [content]
    classes = {value.type_name for value in values if isinstance(value, Placeholder)}
    if classes:
        raise WeightsError(
            f"model.weights: {path} contains {', '.join(sorted(classes)[:3])} objects instead of "
            f"weights, and was not loaded (they could run code); load it with their code and "
            f"{RESAVE}"
        )
    raise WeightsError(f"model.weights: {path} contains no state dict (names → tensors); {RESAVE}")


def _foreign(path: Path, head: bytes) -> str:
    """Describe a file without torch weights, with the remedy; empty for other files."""
    if not head:
        return "empty" + _AGAIN
    if head.startswith(b"PK"):
        return _foreign_zip(path)
    head += path.suffix.encode()
    matching = (
        what for p, what in _FOREIGN.items() if re.match(p, head, re.DOTALL | re.IGNORECASE)
    )
    return next(matching, "")


def _foreign_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            # torch.load checks none of them, and torch.save can leave them out (zero).
            archive.filelist = [
                entry
                for entry in archive.filelist
                if entry.CRC and entry.compress_type == zipfile.ZIP_STORED
            ]
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        return "truncated or damaged" + _AGAIN
    if "constants.pkl" in names:
        return f"TorchScript, a program; load it with torch.jit.load and {RESAVE}"
    if "archive_format" in names:
        return f"a torch.export program; load it with torch.export.load and {RESAVE}"
    if "data.pkl" not in names:
        return "a zip archive; unpack it and use the weights file in it"
    return f"damaged: {damaged} does not match its checksum{_AGAIN}" if damaged else ""


def _state_dicts(
    value: Any, memo: dict[int, StateDict | None], depth: int = _MAX_DEPTH
) -> Tensor | StateDict | None:
    """Return only the named tensors of `value`; lists become mappings by position."""
    if isinstance(value, torch.Tensor):
        return value
    items = dict(enumerate(value)) if isinstance(value, (list, tuple)) else value
    if not isinstance(items, Mapping):
        return None
    if depth and id(value) not in memo:
        memo[id(value)] = None  # ends recursive content
        inner = {str(key): _state_dicts(item, memo, depth - 1) for key, item in items.items()}
        state = StateDict((name, item) for name, item in inner.items() if item is not None)
        versions = getattr(value, "_metadata", None)
        state._metadata = versions if isinstance(versions, Mapping) else {}  # type: ignore[attr-defined]
        memo[id(value)] = state or None
    return memo.get(id(value))


def keyed(state: StateDict, key: str = "") -> dict[str, StateDict]:
    """Return key → nested state dict, with `.` between keys; the key of the whole is ''."""
    parts = {key: state}
    for name, element in state.items():
        if isinstance(element, OrderedDict):
            parts |= keyed(element, f"{key}.{name}" if key else name)
    return parts
