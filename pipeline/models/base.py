"""What every model source is and returns.

A source is a frozen dataclass: what a configuration's `model` node says. `load` does the work and
imports the heavy libraries, so that a mistyped key costs nothing.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipeline.capture.axes import Tokens, declared, named_prefix
from pipeline.common.atomic_files import file_sha256
from pipeline.common.configured import Natural, Positive, configured
from pipeline.common.errors import ConfigError, WeightsError, one_line, suggestion
from pipeline.common.paths import PathText
from pipeline.models.loading_report import (
    LoadingReport,
    cast_to_float32,
    differing,
    listed,
    recorded_loads,
)
from pipeline.models.own_code import evaluation_mode
from pipeline.models.state_dict import fit_state_dict, state_digest
from pipeline.models.transforms import Transform, TransformOverride
from pipeline.models.weight_files import read_state_dict

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT = "DEFAULT"
WEIGHT_FILE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """What a source makes: the module with its weights, and what belongs to them.

    Attributes:
        module: in any mode.
        transform: the weights' own.
        file: the weights' file.
        tokens: what the source knows of the model's tokens.
        report: how the weights' file and the model differ; None leaves that to `ModelSource.load`,
            which watches `Module.load_state_dict`.
    """

    module: nn.Module
    transform: Transform
    file: Path | None = None
    tokens: Tokens = Tokens()
    report: LoadingReport | None = None


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
        axes: layer pattern → word of `pipeline.capture.axes.DECLARABLE`.
        missing_keys: parameters and buffers that did not come from the weights' file.
        weights_dtype: of the weights before they were cast to float32; empty if they were not.
        allow_random: whether layers that depend on missing ones may be selected.
    """

    module: nn.Module
    transform: Transform
    weights: str
    weights_sha256: str
    state_sha256: str
    missing_keys: Sequence[str] = ()
    weights_dtype: str = ""
    allow_random: bool = False
    tokens: Tokens = Tokens()
    axes: Mapping[str, str] = field(default_factory=dict)


@configured
class ModelSource(ABC):
    """One model, by name.

    Attributes:
        name: as the source's library knows it.
        weights: a name, `DEFAULT` for the source's own best, a path to a state dict, or None for
            seeded random weights.
        key: where in a checkpoint the state dict stands, `.` between nested keys; empty takes the
            usual ones (`state_dict`, `model`, …).
        prefix: what is taken off the names of the weights, such as `model.`; None takes off what
            makes all of them fit.
        transform: changes to the transform that belongs to the weights.
        axes: layer (name, glob or `re:`) → `channels_first`, `channels_last`, `tokens`,
            `tokens_last`, `vector` or `attention` (head, query, key), where the model's own types
            and shapes do not tell; `layer[key]` for one element of a tuple or dict.
        prefix_tokens: tokens before those of the grid; None leaves it to the source, and to
            parameters with names such as `cls_token` and `register_tokens`.
        token_grid: `[height, width]` of the token grid; None leaves it to the source.
        allow_random: whether layers may be selected that depend on parameters which the weights'
            file does not contain.
    """

    kind: ClassVar[str] = ""
    """The name by which files know it; empty: its class's in snake case."""

    named_weights: ClassVar[bool] = True
    """Whether `weights` may be a name of the source's; else it is a path."""

    runs_code: ClassVar[str] = ""
    """What code of the configuration's choice it runs; empty: none."""

    compares_seeds: ClassVar[bool] = False
    """Whether weights are compared between two seeds where no library was seen to load any."""

    safe_arguments: ClassVar[frozenset[str]] = frozenset()
    """The `arguments` that an archive may set again without being trusted."""

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

    @abstractmethod
    def build(self, seed: int) -> ModelBundle:
        """Return the module with its weights and what belongs to them.

        Raises:
            ConfigError: when the source knows no such model or weights.
            WeightsError: when the weights cannot be fetched, read or fitted.
        """

    def load(self, *, seed: int = 0) -> LoadedModel:
        """Build the model, in evaluation mode, with everything that an archive records about it."""
        with recorded_loads() as loads:
            module, built, transform = self._build(seed)
        report = LoadingReport() if self.weights is None else built.report
        if report is None:
            report, unknown = loads.report(module)
            if unknown and (loads or self.compares_seeds):
                other, _, _ = self._build(seed + 1)
                random = differing(module, other, unknown)
                report = replace(report, missing_keys=[*report.missing_keys, *random])
        self._refuse_if_nothing_fits(module, report)
        empty = [n for n, tensor in module.state_dict().items() if tensor.is_meta]
        if empty:
            raise ConfigError(
                f"model: {listed(empty)}: parameters on the meta device have no values; build the "
                "model on the CPU, or load weights that contain them"
            )
        cast = cast_to_float32(module)
        report = replace(report, dtype=report.dtype or cast)
        report.log(self.name)
        types = [str(p.dtype) for p in module.parameters() if p.is_floating_point()]
        if types[:1] == ["torch.float64"]:  # it casts the images itself
            module.register_forward_pre_hook(_cast_to_float64)
        evaluation_mode(module)
        module.requires_grad_(False)
        digest = state_digest(module)
        prefixes = (self.prefix_tokens, built.tokens.prefix, named_prefix(module))
        return LoadedModel(
            module=module,
            transform=transform,
            weights=f"random, seed {seed}" if self.weights is None else self.weights,
            weights_sha256=file_sha256(built.file) if built.file else digest,
            state_sha256=digest,
            tokens=Tokens(
                prefix=next((n for n in prefixes if n is not None), None),
                grid=built.tokens.grid if self.token_grid is None else self.token_grid,
                stages=built.tokens.stages if self.token_grid is None else 1,
            ),
            axes=self.axes,
            missing_keys=report.missing_keys,
            weights_dtype=report.dtype,
            allow_random=self.allow_random,
        )

    def _build(self, seed: int) -> tuple[nn.Module, ModelBundle, Transform]:
        import torch
        from torch import nn

        channels = getattr(self, "arguments", {}).get("in_chans")
        if channels not in (None, 1, 3):
            raise ConfigError(
                f"model.arguments.in_chans: {channels} channels; images are decoded to colour (3) "
                "or grey (1), and no other band is kept"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = self.build(seed)
            own = built.transform.grey() if channels == 1 else built.transform
            transform = own.override(self.transform)
            _fill_lazy_layers(built.module, (transform.channels, *(transform.size or (224, 224))))
        module = built.module
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        return module, built, transform

    def _refuse_if_nothing_fits(self, module: nn.Module, report: LoadingReport) -> None:
        missing, unexpected = report.missing_keys, report.unexpected_keys
        if self.allow_random or not unexpected:
            return
        if not {name for name, _ in module.named_parameters()} - {*missing}:
            raise WeightsError(
                f"model.weights: none of the weights fit {self.name}: the file has "
                f"{listed(unexpected)}, the model {listed(missing)}; if only a prefix differs, set "
                "model.prefix"
            )

    def reads(self) -> dict[str, str]:
        """Return configuration key → path of everything on this machine that it names."""
        return {} if self.weights_path is None else {"model.weights": str(self.weights_path)}

    def fetches(self) -> str:
        """Return what it may fetch from the network; empty: nothing."""
        return ""

    @property
    def weights_path(self) -> Path | None:
        """The weights as a path, or None where they are a name."""
        if self.weights is None or self.weights == DEFAULT:
            return None
        place = Path(self.weights).expanduser()
        looks_so = "/" in self.weights or self.weights.endswith(WEIGHT_FILE_ENDINGS)
        return place if looks_so or not self.named_weights or place.is_file() else None

    def load_weights(
        self,
        module: nn.Module,
        default: Path | None = None,
        *,
        rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state,
        strict: bool = True,
    ) -> Path | None:
        """Load the state dict that `weights` is the path of; return the path, or None.

        Args:
            module: what it is loaded into.
            default: what is loaded where `weights` is no path.
            rename: from the file's names to the module's.
            strict: whether every weight must fit.
        """
        path = self.weights_path or default
        if path is not None:
            state = read_state_dict(path, self.key)
            fit_state_dict(
                module, state, origin=path, strict=strict, prefix=self.prefix, rename=rename
            )
        return path


def _cast_to_float64(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.double() if value.is_floating_point() else value for value in inputs)


def _fill_lazy_layers(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Let layers that take their sizes from the first image (`nn.LazyConv2d`, …) see one."""
    import torch

    if not any(map(torch.nn.parameter.is_lazy, (*module.parameters(), *module.buffers()))):
        return
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *shape))
    except Exception as error:
        raise ConfigError(
            f"model: its lazy layers cannot take their sizes from an image of {shape}: "
            f"{one_line(error, limit=200)}; set model.transform.resize and model.transform.crop"
        ) from error


def choose_weights_name(wanted: str, valid: list[str], *, model: str) -> str:
    """Return the weights' exact name, whatever its case."""
    exact = {re.sub(r"\W", "", name).casefold(): name for name in reversed(valid)}
    folded = re.sub(r"\W", "", wanted.split(".")[-1]).casefold()
    if folded in exact:
        return exact[folded]
    raise ConfigError(
        f"model.weights: {model} has no weights {wanted!r}; "
        f"{suggestion(wanted, [DEFAULT, *valid])} "
        "(or a path to a state dict, or null for seeded random weights)"
    )
