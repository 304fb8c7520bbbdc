"""Loading of Hugging Face models; for joint models (image and text), of the vision tower."""

import inspect
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline.common.errors import ConfigError, WeightsError
from pipeline.models.own_code import accepting_arguments
from pipeline.models.weights.loading_report import LoadingReport, short_types

log = logging.getLogger(__name__)


def vision_tower(transformers: Any, config: Any) -> Any:
    """Return the configuration of a joint model's vision tower, or None for an image model."""
    joint = hasattr(config, "text_config") or (
        type(config) in transformers.MODEL_MAPPING
        and transformers.MODEL_MAPPING[type(config)].main_input_name == "input_ids"
    )
    for name in ("vision_config", "image_config"):
        if joint and hasattr(getattr(config, name, None), "update"):
            return getattr(config, name)
    return None


def fresh(transformers: Any, name: str, config: Any, tower: Any) -> nn.Module:
    """Return a model, or the vision tower of a joint model, with random weights."""
    source = tower if tower is not None and type(tower) in transformers.MODEL_MAPPING else config
    model_class = _model_class(transformers, source)
    make = model_class.from_config if model_class is transformers.AutoModel else model_class
    with accepting_arguments(name, ValueError):
        module: nn.Module = make(source)
    return module if tower in (None, source) else _submodule(module, tower)[1]


def pretrained(
    transformers: Any, where: str, config: Any, tower: Any, wanted_prefix: str | None
) -> tuple[nn.Module, LoadingReport]:
    """Return the model with its weights and the loading report.

    If the names fit only without a prefix, the prefix is removed.
    """

    def load(
        source: Any, removed: str = "", dtype: str = "auto"
    ) -> tuple[nn.Module, LoadingReport]:
        source.dtype = None  # of the training; "auto" is then the type of the file's first tensor
        module, info = _model_class(transformers, source).from_pretrained(
            where,
            config=source,
            dtype=dtype,
            key_mapping={f"^{re.escape(removed)}": ""} if removed else None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        if dtype == "auto" and (short := short_types(module)):  # others may be float32
            module, report = load(source, removed, "float32")
            name = str(next(iter(short.values()))).removeprefix("torch.")
            return module, replace(report, dtype=name)
        mismatched = sorted(key[0] for key in info["mismatched_keys"])
        return module, LoadingReport(
            missing_keys=sorted({*info["missing_keys"], *mismatched}),
            unexpected_keys=sorted(info["unexpected_keys"]),
            mismatched_keys=mismatched,
        )

    alone = tower is not None and type(tower) in transformers.MODEL_MAPPING
    prefix = wanted_prefix.rstrip(".") + "." if wanted_prefix else ""
    module, report = load(tower if alone else config, prefix)
    names = [name for name, _ in module.named_parameters()]
    if wanted_prefix is None and not {*names} - {*report.missing_keys}:
        common = _prefix(report.unexpected_keys, names)
        if common:
            log.info("model.weights: removed the prefix %r from the names of %s", common, where)
            module, report = load(tower if alone else config, common)
    if tower is None or (alone and 2 * len(report.missing_keys) < len(names)):
        return module, report
    # Only the joint model converts the names in the file while it is loaded.
    joint_model, joint = load(config, prefix) if alone else (module, report)
    path, submodule = _submodule(joint_model, tower)
    missing, mismatched = (
        [name.removeprefix(path) for name in keys if name.startswith(path)]
        for keys in (joint.missing_keys, joint.mismatched_keys)
    )
    return submodule, replace(joint, missing_keys=missing, mismatched_keys=mismatched)


def _model_class(transformers: Any, config: Any) -> Any:
    """Return `AutoModel`, or the class that `config.json` names for other model types."""
    if type(config) in transformers.MODEL_MAPPING:
        return transformers.AutoModel
    names = config.architectures or []
    for candidate in (getattr(transformers, str(name), None) for name in names):
        if isinstance(candidate, type) and issubclass(candidate, transformers.PreTrainedModel):
            return candidate
    raise ConfigError(
        f"model.name: AutoModel has no model of type {config.model_type}; use a folder or hub "
        f"name whose config.json names a class of transformers in architectures, not {names}"
    )


def _prefix(names: Sequence[str], model_names: Sequence[str]) -> str:
    """Return the prefix that most of a model's names have in a file; may be empty."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        starts = range(1, len(parts))
        counts.update(
            ".".join(parts[:n]) + "." for n in starts if ".".join(parts[n:]) in model_names
        )
    best = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    if len(best) > 1:
        raise WeightsError(
            f"model.weights: {len(best)} networks in the file fit the model; set "
            f"{' or '.join(f'model.prefix={prefix}' for prefix in best[:4])}"
        )
    return best[0] if best else ""


def _submodule(module: nn.Module, config: Any) -> tuple[str, nn.Module]:
    """Return the submodule that a configuration describes, after its name with a dot."""
    for path, submodule in module.named_modules():
        images = "pixel_values"
        main = takes(submodule, images) or getattr(submodule, "main_input_name", "") == images
        if path and main and type(getattr(submodule, "config", None)) is type(config):
            return f"{path}.", submodule
    raise without_tower(module)


def without_tower(module: nn.Module) -> ConfigError:
    """Return the error for a joint model without a vision tower."""
    return ConfigError(
        f"model.name: {type(module).__name__} takes text (input_ids) and has no separate "
        "vision tower; import its class yourself and use model=checkpoint"
    )


def takes(module: nn.Module, name: str) -> bool:
    """Return whether the first argument of a module's `forward` has this name."""
    return next(iter(inspect.signature(module.forward).parameters), "") == name
