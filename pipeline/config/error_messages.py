"""What Hydra and OmegaConf complain about, as one line with the nearest valid name."""

from __future__ import annotations

import re

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.errors import ConfigError, one_line, suggestion
from pipeline.config.config_docs import choices, conf_folder
from pipeline.config.known_keys import kinds_with

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
"""What `explain` explains."""


def explain(error: Exception) -> ConfigError:
    """Return Hydra's or OmegaConf's error as one line: where, what, the nearest valid name."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wrong = str(error.missing_cfg_file).rpartition("/")
        options = [
            name for name in error.options or choices(group) if not name.startswith("schema")
        ]
        more = (
            " (or model=torchvision model.name=NAME for any model of torchvision)"
            if group == "model"
            else ""
        )
        return ConfigError(f"{group}: there is no {wrong!r}; {suggestion(wrong, options)}{more}")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}"
        return ConfigError(f"{place}: no valid YAML: {one_line(error.problem)}")
    if isinstance(error, yaml.YAMLError):
        return ConfigError(f"no valid YAML: {one_line(error)}")
    if "Primary config" in str(error):
        return ConfigError(
            f"{one_line(str(error))} (-cp, -cn): featuremaps brings its own; add yours with "
            "--config-dir FOLDER"
        )
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]+)=([^']*)'", str(error)):
        key, value = ambiguous[1], ambiguous[2]
        if key != "renderers" and choices(key):
            return ConfigError(
                f"{key}={value}: several choices make a sweep: featuremaps extract -m {key}={value}"
            )
        return ConfigError(f"{key}={value}: write {key}=[{value}], or -m to sweep over them")
    if unknown := re.match(r"In '([^']+)': Could not override '(renderers|render)\b", str(error)):
        file = unknown[1].replace("/", "=", 1)
        return ConfigError(f"{file}: also draws ({unknown[2]}); give it to featuremaps run")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override!r}: {one_line(str(error.message).splitlines()[0])}; expected "
            "key=value or group=choice"
        )
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        key, parent = str(cause.full_key or cause.key or ""), cause.parent_node
        if isinstance(parent, DictConfig) and re.search(r"not in (struct|')", str(cause)):
            names = [str(name) for name in parent if name not in ("hydra", "_target_")]
            group, _, wrong = key.rpartition(".")
            near = _elsewhere(group, wrong) or suggestion(wrong, names, whole=True)
            return ConfigError(f"{key}: no such key; {near}")
        return ConfigError(f"{key}: {one_line(str(cause).splitlines()[0])}")
    deleted = re.search(r"Could not delete from config\. '([^']+)'", str(error))
    if deleted:
        group, _, wrong = deleted[1].rpartition(".")
        return ConfigError(
            f"~{deleted[1]}: there is no such key; {suggestion(wrong, choices(group))}"
        )
    return ConfigError(one_line(str(error).split("\n")[0]))


def _elsewhere(group: str, key: str) -> str:
    """Return which other choices of a group have a key, for an error."""
    if group == "hydra.launcher":
        files = sorted((conf_folder() / "launch").glob("*.yaml"))
        has = [f.stem for f in files if re.search(rf"^    {key}:", f.read_text("utf-8"), re.M)]
        return f"launch={' or launch='.join(has)} has it" if has else ""
    has = kinds_with(group, [key]) if group in ("model", "dataset", "reduction") else []
    return f"{' or '.join(f'{group}={name}' for name in has)} has it" if has else ""
