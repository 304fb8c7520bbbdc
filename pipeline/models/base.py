"""Base class of model sources, and the models that they return.

A source is a frozen dataclass: the `model` node of a configuration. Heavy libraries are imported in
`load`, so configuration errors are reported at once.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipeline.capture.axes import Tokens, declared, named_prefix
from pipeline.common.atomic_files import file_sha256
from pipeline.common.configured import Natural, Positive, configured
from pipeline.common.errors import ConfigError, WeightsError, listed, plural, suggestion
from pipeline.common.paths import PathText
from pipeline.models.own_code import evaluation_mode, fill_lazy_layers, float32_by_default
from pipeline.models.transforms import Transform, TransformOverride

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.models.weights.loading_report import LoadingReport

log = logging.getLogger(__name__)

DEFAULT = "DEFAULT"
WEIGHT_FILE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """The result of `ModelSource.build`: a module with its weights and their metadata.

    Attributes:
        module: in training or evaluation mode.
        transform: the weights' own.
        file: the weights file, if any.
        tokens: the token layout as far as the source knows it.
        report: differences between weights file and model; None lets `ModelSource.load` determine
            them from calls of `Module.load_state_dict`.
    """

    module: nn.Module
    transform: Transform
    file: Path | None = None
    tokens: Tokens = Tokens()
    report: LoadingReport | None = None


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run, with the metadata that an archive records."""

    module: nn.Module  # on the CPU, in evaluation mode
    transform: Transform
    weights: str  # name or path, or e.g. `random, seed 0`
    weights_sha256: str  # of the weights file, or of the state dict if there is no file
    state_sha256: str  # of the loaded parameters and buffers (see `state_digest`)
    missing_keys: Sequence[str] = ()  # parameters and buffers that the weights file lacks
    weights_dtype: str = ""  # before a cast to float32; empty without a cast
    short_types: Mapping[str, torch.dtype] = field(default_factory=dict)  # the same, by name
    tokens: Tokens = Tokens()


@configured
class ModelSource(ABC):
    """One model, by name.

    Attributes:
        name: the model's name in the source's library.
        weights: a name, `DEFAULT` for the library's recommended weights, a path to a state dict, or
            None for seeded random weights.
        key: key of the state dict in a checkpoint, `.` between nested keys; empty tries the usual
            ones (`state_dict`, `model`, …).
        prefix: prefix to remove from the names of the weights, such as `model.`; None removes the
            prefix that makes all names fit.
        transform: changes to the transform of the weights.
        axes: layer (name, glob or `re:`) → `channels_first`, `channels_last`, `tokens`,
            `tokens_last`, `vector` or `attention` (head, query, key), for layers whose type and
            shape are ambiguous; `layer[key]` for one element of a tuple or dict.
        prefix_tokens: number of tokens before those of the grid; None uses the source's value, or
            parameters with names such as `cls_token` and `register_tokens`.
        token_grid: `[height, width]` of the token grid; None uses the source's value.
        allow_random: whether layers may be selected that depend on parameters missing from the
            weights file.
    """

    type_key: ClassVar[str] = ""
    """The type's name in files; empty: the class name in snake case."""

    named_weights: ClassVar[bool] = True
    """Whether `weights` may be a name; otherwise it is a path."""

    runs_code: ClassVar[str] = ""
    """The code that a configuration makes the source run, as a verb phrase; may be empty."""

    compares_seeds: ClassVar[bool] = False
    """Whether builds of two seeds are compared if no call of `load_state_dict` was seen."""

    safe_arguments: ClassVar[frozenset[str]] = frozenset()
    """The `arguments` that an untrusted archive may set."""

    name: PathText
    weights: PathText | None = DEFAULT
    key: str = ""
    prefix: str | None = None
    transform: TransformOverride = TransformOverride()
    axes: dict[str, str] = field(default_factory=dict)
    prefix_tokens: Natural | None = None
    token_grid: tuple[Positive, Positive] | None = None
    allow_random: bool = False

    def __post_init__(self) -> None:
        for layer, word in self.axes.items():
            declared(word, where=f"axes ({layer})")
        for option, value in (("key", self.key), ("prefix", self.prefix)):
            if value and self.weights is None:
                raise ValueError(
                    f"{option}: {value!r} selects weights in a file, but model.weights is null; "
                    f"set model.weights, or remove model.{option}"
                )

    @abstractmethod
    def build(self, seed: int) -> ModelBundle:
        """Return the module with its weights and their metadata.

        Raises:
            ConfigError: when the model or the weights are unknown.
            WeightsError: when the weights cannot be downloaded, read or loaded into the module.
        """

    def load(self, *, seed: int = 0) -> LoadedModel:
        """Build the model in evaluation mode, with the metadata that an archive records."""
        import torch

        from pipeline.models.weights.loading_report import (
            LoadingReport,
            cast,
            recorded_loads,
            short_types,
        )
        from pipeline.models.weights.state_dict import state_digest, state_of, tensors_of

        with recorded_loads() as loads:
            built = self._build(seed)
        module = built.module
        report = LoadingReport() if self.weights is None else built.report
        if report is None:
            other = partial(self._build, seed + 1)
            report = loads.report(module, other, always=self.compares_seeds)
        missing, unexpected = report.missing_keys, report.unexpected_keys
        parameters = {name for name, _ in module.named_parameters()}
        if unexpected and parameters <= {*missing} and not self.allow_random:
            raise WeightsError(
                f"model.weights: none of the weights fit {self.name}: the file has "
                f"{listed(unexpected)}, the model has {listed(missing)}; if only a "
                "prefix differs, set model.prefix"
            )
        tensors = dict(tensors_of(state_of(module)))
        if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
            raise ConfigError(
                f"model: {listed(empty)}: parameters on the meta device have no values; build the "
                "model on the CPU, or load weights that contain them"
            )
        if nan := [name for name, value in tensors.items() if bool((value != value).any())]:
            text = "model.weights: NaN in %s of %s: %s"
            log.warning(text, plural(len(nan), "tensor"), self.name, listed(nan))
        short = short_types(module)
        cast(module, dict.fromkeys(short, torch.float32))
        names = sorted({str(dtype).removeprefix("torch.") for dtype in short.values()})
        report = replace(report, dtype=report.dtype or ", ".join(names))
        report.log(self.name)
        types = [str(p.dtype) for p in module.parameters() if p.is_floating_point()]
        if types[:1] == ["torch.float64"]:  # cast the images, too
            module.register_forward_pre_hook(_cast_to_float64)
        evaluation_mode(module)
        for parameter in module.parameters():  # copies of TorchScript ones are no leaves
            parameter.detach_().requires_grad_(False)
        digest = state_digest(module)
        naming = named_prefix(module)
        prefixes = (self.prefix_tokens, built.tokens.prefix, sum(naming.values()) or None)
        return LoadedModel(
            module=module,
            transform=built.transform,
            weights=f"random, seed {seed}" if self.weights is None else self.weights,
            weights_sha256=file_sha256(built.file) if built.file else digest,
            state_sha256=digest,
            tokens=Tokens(
                prefix=next((n for n in prefixes if n is not None), None),
                grid=built.tokens.grid if self.token_grid is None else self.token_grid,
                stages=built.tokens.stages if self.token_grid is None else 1,
                class_token=not naming or any(name.startswith(("cls", "class")) for name in naming),
            ),
            missing_keys=report.missing_keys,
            weights_dtype=report.dtype,
            short_types=short,
        )

    def _build(self, seed: int) -> ModelBundle:
        """Build the model, unwrapped, with the transform that the configuration asks for."""
        import torch
        from torch import nn

        channels = getattr(self, "arguments", {}).get("in_chans")
        if channels not in (None, 1, 3):
            raise ConfigError(
                f"model.arguments.in_chans: {channels} channels are not supported; images have 3 "
                "channels (colour) or 1 (grey)"
            )
        with torch.random.fork_rng(devices=[]), float32_by_default():
            torch.manual_seed(seed)
            built = self.build(seed)
            original = built.transform.grey() if channels == 1 else built.transform
            transform = original.override(self.transform)
            fill_lazy_layers(built.module, (transform.channels, *(transform.size or (224, 224))))
        module = built.module
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        return replace(built, module=module, transform=transform)

    def reads(self) -> dict[str, str]:
        """Return configuration key → path of every local file or folder that the source reads."""
        return {} if self.weights_path is None else {"model.weights": str(self.weights_path)}

    def fetches(self) -> str:
        """Return what the source may download; empty: nothing."""
        return ""

    @property
    def weights_path(self) -> Path | None:
        """The weights as a path, or None if `weights` is a name."""
        if self.weights is None or self.weights == DEFAULT:
            return None
        path = Path(self.weights).expanduser()
        looks_like_path = "/" in self.weights or self.weights.endswith(WEIGHT_FILE_ENDINGS)
        return path if looks_like_path or not self.named_weights or path.is_file() else None

    def load_weights(
        self,
        module: nn.Module,
        default: Path | None = None,
        *,
        rename: Callable[[str], str] = str,
        strict: bool = True,
    ) -> Path | None:
        """Load the state dict at the path `weights`, if it is one; return the path, or None.

        Args:
            default: path to use if `weights` is not a path.
            rename: maps a name in the file to the module's.
        """
        from pipeline.models.weights.files import read_state_dict
        from pipeline.models.weights.state_dict import fit_state_dict

        path = self.weights_path or default
        if path is not None:
            state = read_state_dict(path, self.key)
            fit_state_dict(
                module, state, origin=path, strict=strict, prefix=self.prefix, rename=rename
            )
        return path


def _cast_to_float64(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.double() if value.is_floating_point() else value for value in inputs)


def choose_weights_name(name: str, valid: list[str], *, model: str) -> str:
    """Return the exact name of weights that are given in any case."""
    exact = {re.sub(r"\W", "", known).casefold(): known for known in reversed(valid)}
    folded = re.sub(r"\W", "", name.split(".")[-1]).casefold()
    if folded in exact:
        return exact[folded]
    raise unknown_weights(name, valid, model=model)


def unknown_weights(name: str, valid: Sequence[str] = (), *, model: str) -> ConfigError:
    """Return the error for a name of weights that a model lacks."""
    return ConfigError(
        f"model.weights: {model} has no weights {name!r}; {suggestion(name, [DEFAULT, *valid])} "
        "(or a path to a state dict, or null for seeded random weights)"
    )
