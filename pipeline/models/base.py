"""What every model source is and returns.

A source is a frozen dataclass: what a configuration's `model` node says. `load` does the work and
imports the heavy libraries, so that a mistyped key costs nothing.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.decoding import read_regular
from pipeline.errors import ConfigError, SampleError, WeightsError
from pipeline.names import one_line, suggestion
from pipeline.transforms import Transform, TransformOverride

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT = "DEFAULT"
WEIGHT_FILE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run, and what an archive must record about it.

    Attributes:
        module: on the CPU, in evaluation mode.
        transform: what the model's inputs go through.
        weights: what the weights are: a name, a path or `random, seed 0`.
        weights_sha256: of the weights' file; of the state dict where there is no file.
        state_sha256: of the loaded parameters and buffers (see `state_digest`).
    """

    module: nn.Module
    transform: Transform
    weights: str
    weights_sha256: str
    state_sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelSource(ABC):
    """One model, by name.

    Attributes:
        name: as the source's library knows it.
        weights: a name, `DEFAULT` for the source's own best, a path to a state dict, or None for
            seeded random weights.
        transform: changes to the transform that belongs to the weights.
    """

    name: str
    weights: str | None = DEFAULT
    transform: TransformOverride = TransformOverride()

    @abstractmethod
    def build(self, seed: int) -> tuple[nn.Module, Transform, Path | None]:
        """Return the module with its weights, their own transform, and the weights' file if there
        is one.

        Raises:
            ConfigError: when the source knows no such model or weights.
            WeightsError: when the weights cannot be fetched, read or fitted.
        """

    def load(self, *, seed: int = 0) -> LoadedModel:
        """Build the model, in evaluation mode, with everything that an archive records about it.

        Raises:
            ConfigError, WeightsError: see `build`.
        """
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, transform, file = self.build(seed)
        module.eval()
        module.requires_grad_(False)
        digest = state_digest(module)
        return LoadedModel(
            module=module,
            transform=transform.override(self.transform),
            weights=f"random, seed {seed}" if self.weights is None else self.weights,
            weights_sha256=file_digest(file) if file else digest,
            state_sha256=digest,
        )

    @property
    def weights_path(self) -> Path | None:
        """The weights as a path, or None where they are a name."""
        if self.weights is None or self.weights == DEFAULT:
            return None
        if "/" in self.weights or self.weights.endswith(WEIGHT_FILE_ENDINGS):
            return Path(self.weights).expanduser()
        return Path(self.weights) if Path(self.weights).is_file() else None


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digest(module: nn.Module) -> str:
    """Return the sha256 over every parameter and buffer.

    Name, dtype, shape and bytes, in the module's order.
    """
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
    state = {str(name): value for name, value in content.items()}
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(
            f"model.weights: {path} holds no state dict (some entries are no tensors)"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def read_regular_head(path: Path) -> None:
    """Refuse what `torch.load` would hang on or misreport: a missing file, a folder, a pipe."""
    if not path.exists():
        raise SampleError(f"{path}: no such file")
    if not path.is_file():
        raise SampleError(f"{path}: not a regular file")


def fit_state_dict(module: nn.Module, state: dict[str, Tensor], *, origin: object) -> None:
    """Load `state` into `module`, strictly.

    Raises:
        WeightsError: naming what is missing, left over or of another shape.
    """
    own = module.state_dict()
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
    if faults:
        raise WeightsError(f"model.weights: {origin} does not fit the model; {'; '.join(faults)}")
    module.load_state_dict(state, strict=True)


@contextmanager
def downloading(what: str) -> Iterator[None]:
    """Turn a failed download of weights into one line that names the alternatives.

    Raises:
        WeightsError: when the block could not reach the weights' host.
    """
    try:
        yield
    except (ConfigError, WeightsError):
        raise
    except (OSError, RuntimeError) as error:
        # RuntimeError: hash mismatch of a broken download; huggingface_hub's offline errors are
        # OSErrors.
        raise WeightsError(
            f"{what} could not be downloaded ({one_line(error, limit=160)}); offline, use "
            "model.weights=PATH (a local state dict), model.weights=null (seeded random weights) "
            "or "
            "model=tf_efficientnet_lite0 (its weights are installed with featuremaps)"
        ) from error


def choose_weights_name(wanted: str, valid: list[str], *, model: str) -> str:
    """Return the weights' exact name, whatever its case.

    Raises:
        ConfigError: when there is no such name.
    """
    for name in valid:
        if (
            re.sub(r"\W", "", name).casefold()
            == re.sub(r"\W", "", wanted.split(".")[-1]).casefold()
        ):
            return name
    raise ConfigError(
        f"model.weights: {model} has no weights {wanted!r}; "
        f"{suggestion(wanted, [DEFAULT, *valid])} "
        "(or a path to a state dict, or null for seeded random weights)"
    )
