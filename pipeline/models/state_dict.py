"""State dicts: read without running what the file holds, fitted to a module, and their digest."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import SampleError, WeightsError, one_line
from pipeline.inputs.decoding import read_regular

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)


def state_digest(module: nn.Module) -> str:
    """Return the sha256 over name, dtype, shape and bytes of every parameter and buffer."""
    import torch

    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file, executing nothing that the file holds.

    A checkpoint that wraps it (`state_dict`, `model`, `model_state_dict`) is unwrapped, and the
    prefix that DataParallel adds is taken off.

    Raises:
        WeightsError: when the file is missing, holds code or other objects, or no tensors.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            content: Any = load(read_regular(path))
        else:
            read_regular_head(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SampleError as error:
        raise WeightsError(f"model.weights: {error}") from error
    except Exception as error:
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise WeightsError(
                f"model.weights: {path} holds Python objects beside tensors and was not loaded "
                "(they could run code); save `model.state_dict()` alone"
            ) from error
        raise WeightsError(
            f"model.weights: {path} is no readable state dict: {one_line(error)}"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise WeightsError(
            f"model.weights: {path} holds no state dict (a mapping of names to tensors)"
        )
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(
            f"model.weights: {path} holds no state dict (some entries are no tensors)"
        )
    metadata = getattr(content, "_metadata", {})
    parallel = all(str(name).startswith("module.") for name in content)
    shorten = partial(_without, "module." if parallel else "")
    state = OrderedDict((shorten(str(name)), value) for name, value in content.items())
    return _with_metadata(state, {shorten(str(name)): value for name, value in metadata.items()})


def _without(prefix: str, name: str) -> str:
    return "" if name == prefix.rstrip(".") else name.removeprefix(prefix)


def _with_metadata(state: dict[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a state dict with the versions of the modules that it came from.

    Modules read older versions by them (`Module._load_from_state_dict`), and some refuse to load
    without. They are an attribute of torch's state dicts, which a plain dict does not have.
    """
    kept = OrderedDict(state)
    kept._metadata = metadata  # type: ignore[attr-defined]
    return kept


def read_regular_head(path: Path) -> None:
    """Refuse what `torch.load` would hang on or misreport: a missing file, a folder, a pipe."""
    if not path.exists():
        raise SampleError(f"{path}: no such file")
    if not path.is_file():
        raise SampleError(f"{path}: not a regular file")


def fit_state_dict(
    module: nn.Module, state: dict[str, Tensor], *, origin: object, strict: bool = True
) -> None:
    """Load `state` into `module`: all of it, or (not strict) what fits by name and shape.

    Raises:
        WeightsError: naming what is missing, left over or of another shape.
    """
    own: Any = module.state_dict()
    # A file without versions (safetensors) can only be of the present ones.
    state = _with_metadata(state, getattr(state, "_metadata", {}) or own._metadata)
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in state and hasattr(own[name], "shape") and state[name].shape != own[name].shape
    ]
    faults = [
        f"{label}: {', '.join(names[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for label, names in (
            ("missing", missing),
            ("not in the model", extra),
            ("shapes differ", shapes),
        )
        if names
    ]
    if not strict:
        fitting = [n for n in own if n in state and own[n].shape == state[n].shape]
        if not fitting:
            raise WeightsError(f"model.weights: nothing in {origin} fits the model")
        log.warning("model.weights: %d of %d tensors loaded; %s", len(fitting), len(own), faults)
        fits = _with_metadata({n: state[n] for n in fitting}, getattr(state, "_metadata", {}))
        module.load_state_dict(fits, strict=False)
        return
    if faults:
        raise WeightsError(f"model.weights: {origin} does not fit the model; {'; '.join(faults)}")
    module.load_state_dict(state, strict=True)
