"""Loading of Hugging Face models; of joint models (image and text) the vision tower."""

from __future__ import annotations

import inspect
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import ConfigError, WeightsError, one_line
from pipeline.models.loading_report import LoadingReport

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


def vision_tower(transformers: Any, config: Any) -> Any:
    """Return the configuration of a joint model's vision tower, None for an image model."""
    joint = hasattr(config, "text_config") or (
        type(config) in transformers.MODEL_MAPPING
        and transformers.MODEL_MAPPING[type(config)].main_input_name == "input_ids"
    )
    for name in ("vision_config", "image_config"):
        if joint and hasattr(getattr(config, name, None), "update"):
            return getattr(config, name)
    return None


def fresh(transformers: Any, name: str, config: Any, tower: Any) -> nn.Module:
    """Return a model with random weights; of a joint model its vision tower."""
    known = tower if tower is not None and type(tower) in transformers.MODEL_MAPPING else config
    own = _model_class(transformers, known)
    make = own.from_config if own is transformers.AutoModel else own
    try:
        module: nn.Module = make(known)
    except ValueError as error:
        raise ConfigError(f"model.name: {name}: {one_line(error)}") from error
    return module if tower in (None, known) else _submodule(module, tower)[1]


def pretrained(
    transformers: Any, where: str, config: Any, tower: Any, wanted_prefix: str | None
) -> tuple[nn.Module, LoadingReport]:
    """Return the model with its weights, and what they left out.

    Where names fit only without a prefix, they are loaded without it.
    """
    saved = getattr(config, "dtype", None)

    def load(wanted: Any, prefix: str = "") -> tuple[nn.Module, LoadingReport]:
        module, info = _model_class(transformers, wanted).from_pretrained(
            where,
            config=wanted,
            dtype="auto" if saved is None else "float32",
            key_mapping={f"^{re.escape(prefix)}": ""} if prefix else None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        mismatched = sorted(key[0] for key in info["mismatched_keys"])
        dtype = "" if saved is None else str(saved).removeprefix("torch.")
        return module, LoadingReport(
            missing_keys=sorted({*info["missing_keys"], *mismatched}),
            unexpected_keys=sorted(info["unexpected_keys"]),
            mismatched_keys=mismatched,
            dtype="" if dtype == "float32" else dtype,
        )

    alone = tower is not None and type(tower) in transformers.MODEL_MAPPING
    given = wanted_prefix.rstrip(".") + "." if wanted_prefix else ""
    module, report = load(tower if alone else config, given)
    names = [name for name, _ in module.named_parameters()]
    if wanted_prefix is None and not {*names} - {*report.missing_keys}:
        prefix = _prefix(report.unexpected_keys, names)
        if prefix:
            log.info("model.weights: %r is taken off the names of %s", prefix, where)
            module, report = load(tower if alone else config, prefix)
    if tower is None or (alone and 2 * len(report.missing_keys) < len(names)):
        return module, report
    # Only the joint model knows the names in the file: they are converted while it is loaded.
    whole, joint = load(config, given) if alone else (module, report)
    path, part = _submodule(whole, tower)
    missing, mismatched = (
        [name.removeprefix(path) for name in keys if name.startswith(path)]
        for keys in (joint.missing_keys, joint.mismatched_keys)
    )
    return part, replace(joint, missing_keys=missing, mismatched_keys=mismatched)


def _model_class(transformers: Any, config: Any) -> Any:
    """Return `AutoModel`, or for a type that it lacks the class that `config.json` names."""
    if type(config) in transformers.MODEL_MAPPING:
        return transformers.AutoModel
    names = config.architectures or []
    for own in (getattr(transformers, str(name), None) for name in names):
        if isinstance(own, type) and issubclass(own, transformers.PreTrainedModel):
            return own
    raise ConfigError(
        f"model.name: AutoModel has no model of type {config.model_type}; give a folder or hub "
        f"name whose config.json names a class of transformers in architectures, not {names}"
    )


def _prefix(names: Sequence[str], own: Sequence[str]) -> str:
    """Return what stands before most of a model's own names in a file; empty if nothing does."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        starts = range(1, len(parts))
        counts.update(".".join(parts[:n]) + "." for n in starts if ".".join(parts[n:]) in own)
    best = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    if len(best) > 1:
        raise WeightsError(
            f"model.weights: {len(best)} networks in the file fit the model; choose one: "
            f"{' or '.join(f'model.prefix={prefix}' for prefix in best[:4])}"
        )
    return best[0] if best else ""


def _submodule(module: nn.Module, config: Any) -> tuple[str, nn.Module]:
    """Return the part of a joint model that a configuration describes, and its name with a dot."""
    for path, part in module.named_modules():
        images = "pixel_values"
        main = takes(part, images) or getattr(part, "main_input_name", "") == images
        if path and main and type(getattr(part, "config", None)) is type(config):
            return f"{path}.", part
    raise without_tower(module)


def without_tower(module: nn.Module) -> ConfigError:
    """Return the error for a joint model without a vision tower."""
    return ConfigError(
        f"model.name: {type(module).__name__} takes text (input_ids) and has no vision tower of "
        "its own; import its class yourself and use model=checkpoint"
    )


def takes(module: nn.Module, name: str) -> bool:
    """Return whether the first argument of a module has this name."""
    return next(iter(inspect.signature(module.forward).parameters), "") == name
