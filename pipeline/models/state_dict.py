"""State dicts: read without running what the file holds, fitted to a module, and their digest."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.foundation.errors import SampleError, WeightsError, one_line, suggestion
from pipeline.inputs.decoding import read_regular
from pipeline.models.weight_names import added_prefix, best_prefix, unwrapped

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


_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "ema_state_dict")
"""Where checkpoints keep the state dict, the likeliest first."""


def read_state_dict(path: Path, key: str = "") -> dict[str, Tensor]:
    """Read a state dict from a file, executing nothing that the file holds.

    Args:
        path: of the file.
        key: where in a checkpoint the state dict stands, `.` between nested keys; empty takes the
            usual ones.

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
    content = _within(content, key, path)
    if not isinstance(content, dict) or not content:
        raise WeightsError(
            f"model.weights: {path} holds no state dict (a mapping of names to tensors)"
        )
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(
            f"model.weights: {path} holds no state dict (some entries are no tensors)"
        )
    metadata = getattr(content, "_metadata", {})
    return _with_metadata({str(name): value for name, value in content.items()}, metadata)


def _within(content: Any, key: str, path: Path) -> Any:
    """Return the part of a checkpoint that a key names, or its state dict wherever that usually is.

    Raises:
        WeightsError: when there is no such key.
    """
    for part in key.split(".") if key else ():
        if not isinstance(content, dict) or part not in content:
            there = [str(name) for name in content] if isinstance(content, dict) else []
            raise WeightsError(f"model.key: {path} has no {part!r}; {suggestion(part, there)}")
        content = content[part]
    while not key and isinstance(content, dict):
        found = [content[name] for name in _KEYS if isinstance(content.get(name), dict)]
        if not found:
            break
        content = found[0]
    return content


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
    module: nn.Module,
    state: dict[str, Tensor],
    *,
    origin: object,
    strict: bool = True,
    prefix: str | None = None,
) -> None:
    """Load `state` into `module`: all of it, or (not strict) what fits by name and shape.

    Args:
        module: what is loaded into.
        state: names of a checkpoint → tensors.
        origin: of the state, for messages.
        strict: whether every weight of the module must be there.
        prefix: what is taken off the names; None takes off what makes every name fit.

    Raises:
        WeightsError: naming what is missing, left over or of another shape.
    """
    own: Any = module.state_dict()
    state, near = _renamed(state, own, origin, prefix)
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
            raise WeightsError(f"model.weights: nothing in {origin} fits the model{near}")
        log.warning("model.weights: %d of %d tensors loaded; %s", len(fitting), len(own), faults)
        fits = _with_metadata({n: state[n] for n in fitting}, getattr(state, "_metadata", {}))
        module.load_state_dict(fits, strict=False)
        return
    if faults:
        raise WeightsError(
            f"model.weights: {origin} does not fit the model; {'; '.join(faults)}{near}"
        )
    module.load_state_dict(state, strict=True)


def _renamed(
    state: dict[str, Tensor], own: Any, origin: object, prefix: str | None
) -> tuple[dict[str, Tensor], str]:
    """Return a state dict under the model's names, and what to say if it does not fit."""
    # A file without versions (safetensors) can only be of the present ones.
    versions = getattr(state, "_metadata", {}) or own._metadata
    clean = unwrapped(state, own)
    names = {clean(name): name for name in state}
    near = ""
    if prefix is None:
        prefix, count = best_prefix(names, own)
        if prefix and count < len(own):
            near = f"; with model.prefix={prefix} {count} of {len(own)} weights would fit"
            prefix = ""
    elif prefix:
        prefix = prefix.rstrip(".") + "."
    added = "" if prefix else added_prefix(names, own)
    if prefix or added:
        what = f"{prefix!r} is taken off" if prefix else f"{added!r} is put before"
        log.info("model.weights: %s the names of %s", what, origin)

    def rename(name: str) -> str:
        name = clean(name)
        return "" if name == prefix.rstrip(".") else added + name.removeprefix(prefix)

    kept = {rename(old): state[old] for new, old in names.items() if new.startswith(prefix)}
    return _with_metadata(kept, {rename(name): value for name, value in versions.items()}), near
