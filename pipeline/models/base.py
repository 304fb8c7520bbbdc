"""What every model source is and returns.

A source is a frozen dataclass: what a configuration's `model` node says. `load` does the work and
imports the heavy libraries, so that a mistyped key costs nothing.
"""

from __future__ import annotations

import hashlib
import logging
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.axes import Tokens, declared
from pipeline.decoding import read_regular
from pipeline.durable import file_sha256
from pipeline.errors import ConfigError, SampleError, WeightsError
from pipeline.names import one_line, suggestion
from pipeline.transforms import Transform, TransformOverride

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

DEFAULT = "DEFAULT"
WEIGHT_FILE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a source makes: the module with its weights, and what belongs to them.

    Attributes:
        module: in any mode.
        transform: the weights' own.
        file: the weights' file, None where there is none.
        tokens: what the source knows of the model's tokens.
    """

    module: nn.Module
    transform: Transform
    file: Path | None = None
    tokens: Tokens = Tokens()


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run, and what an archive must record about it.

    Attributes:
        module: on the CPU, in evaluation mode.
        transform: what the model's inputs go through.
        weights: what the weights are: a name, a path or `random, seed 0`.
        weights_sha256: of the weights' file; of the state dict where there is no file.
        state_sha256: of the loaded parameters and buffers (see `state_digest`).
        tokens: what is known of its tokens.
        axes: layer pattern → word of `pipeline.axes.DECLARABLE`.
    """

    module: nn.Module
    transform: Transform
    weights: str
    weights_sha256: str
    state_sha256: str
    tokens: Tokens = Tokens()
    axes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelSource(ABC):
    """One model, by name.

    Attributes:
        name: as the source's library knows it.
        weights: a name, `DEFAULT` for the source's own best, a path to a state dict, or None for
            seeded random weights.
        transform: changes to the transform that belongs to the weights.
        axes: layer (name, glob or `re:`) → `channels_first`, `channels_last`, `tokens`,
            `tokens_last` or `vector`, where the model's own types and shapes do not tell.
        prefix_tokens: tokens before those of the grid; None leaves it to the source.
        grid: `[height, width]` of the token grid; None leaves it to the source.
    """

    name: str
    weights: str | None = DEFAULT
    transform: TransformOverride = TransformOverride()
    axes: dict[str, str] = field(default_factory=dict)
    prefix_tokens: int | None = None
    grid: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for layer, word in self.axes.items():
            declared(word, where=f"axes ({layer})")
        if self.prefix_tokens is not None and self.prefix_tokens < 0:
            raise ValueError(f"prefix_tokens must be at least 0, got {self.prefix_tokens}")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise ValueError(f"grid takes [height, width], got {list(self.grid)}")

    @abstractmethod
    def build(self, seed: int) -> Built:
        """Return the module with its weights and what belongs to them.

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
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = self.build(seed)
        module = built.module
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        module.eval()
        module.requires_grad_(False)
        digest = state_digest(module)
        return LoadedModel(
            module=module,
            transform=built.transform.override(self.transform),
            weights=f"random, seed {seed}" if self.weights is None else self.weights,
            weights_sha256=file_sha256(built.file) if built.file else digest,
            state_sha256=digest,
            tokens=Tokens(
                prefix=built.tokens.prefix if self.prefix_tokens is None else self.prefix_tokens,
                grid=built.tokens.grid if self.grid is None else (self.grid[0], self.grid[1]),
            ),
            axes=self.axes,
        )

    @property
    def weights_path(self) -> Path | None:
        """The weights as a path, or None where they are a name."""
        if self.weights is None or self.weights == DEFAULT:
            return None
        if "/" in self.weights or self.weights.endswith(WEIGHT_FILE_ENDINGS):
            return Path(self.weights).expanduser()
        return Path(self.weights) if Path(self.weights).is_file() else None


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


def fit_state_dict(
    module: nn.Module, state: dict[str, Tensor], *, origin: object, strict: bool = True
) -> None:
    """Load `state` into `module`: all of it, or (not strict) what fits by name and shape.

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
    if not strict:
        fitting = [n for n in own if n in state and own[n].shape == state[n].shape]
        if not fitting:
            raise WeightsError(f"model.weights: nothing in {origin} fits the model")
        log.warning("model.weights: %d of %d tensors loaded; %s", len(fitting), len(own), faults)
        module.load_state_dict({name: state[name] for name in fitting}, strict=False)
        return
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
    except Exception as error:
        # Every library has its own: URLError, httpx's, huggingface_hub's, RuntimeError for a bad
        # hash.
        raise WeightsError(
            f"{what} could not be downloaded ({one_line(error, limit=160)}); offline, use "
            "model.weights=PATH (a local state dict), model.weights=null (seeded random weights) "
            "or "
            "model=tf_efficientnet_lite0 (its weights are installed with featuremaps)"
        ) from error


@contextmanager
def hub_answers_at_once() -> Iterator[None]:
    """Let huggingface_hub fall back to its cache at once where its host cannot be found.

    Otherwise it tries again and again for most of a minute.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname or "huggingface.co", 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


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
