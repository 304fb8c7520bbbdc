"""Error messages for exceptions of Hydra and OmegaConf."""

import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from hydra._internal import defaults_list
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.errors import ConfigError, one_line, suggestion
from pipeline.config.build import GLOBAL
from pipeline.config.config_docs import choices, conf_folder
from pipeline.config.hydra_schema import plain_words
from pipeline.config.keys import kinds_with

_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
_LAUNCHERS = {
    "joblib": "joblib",
    "submitit_slurm": "slurm",
    "submitit_local": "slurm",
    "ray": "ray",
}


def is_of_composition(error: Exception) -> bool:
    """Return whether an exception of Hydra is about the configuration: `explain` handles it."""
    return isinstance(error, _ERRORS) or bool(_frames(error))


def _frames(error: Exception) -> list[dict[str, Any]]:
    """Return the local variables of Hydra's functions that read defaults lists."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [f.f_locals for f in frames if f.f_globals["__name__"] == defaults_list.__name__]


def explain(error: Exception, options_of: Callable[[str], Sequence[str]] = choices) -> ConfigError:
    """Return a ConfigError with one line: key or file, fact, nearest valid name.

    Args:
        error: an exception of Hydra.
        options_of: group → its choices, also of the user's groups.
    """
    if not isinstance(error, _ERRORS):
        nodes = [frame["parent"] for frame in _frames(error) if "parent" in frame]
        files = [node.get_config_path() for node in nodes if not node.is_virtual()]
        cycle = list(dict.fromkeys(file for file in files if files.count(file) > 2))
        if cycle:
            chain = " → ".join([*cycle, cycle[0]])
            return ConfigError(
                f"{chain}: the defaults list includes its own file; remove the entry"
            )
        return ConfigError(": ".join([*files[-1:], one_line(error)]))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, wrong = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and (extra := _LAUNCHERS.get(wrong)):
            return ConfigError(
                f"{group}: {wrong} is not installed; run: pip install 'featuremaps[{extra}]'"
            )
        options = [
            name for name in error.options or options_of(group) if not name.startswith("schema")
        ]
        hint = (
            " (or any torchvision model: model=torchvision model.name=NAME)"
            if group == "model"
            else ""
        )
        return ConfigError(f"{group}: unknown choice {wrong!r}; {suggestion(wrong, options)}{hint}")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}"
        return ConfigError(f"{where}: invalid YAML: {one_line(error.problem)}")
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]+)=([^']*)'", str(error)):
        key, value = ambiguous[1], ambiguous[2]
        if key != "renderers" and choices(key):
            return ConfigError(
                f"{key}={value}: several choices need a sweep; add -m: "
                f"featuremaps extract -m {key}={value}"
            )
        return ConfigError(
            f"{key}={value}: use {key}=[{value}] for a list, or add -m to sweep over the values"
        )
    if unknown := re.match(r"In '([^']+)': Could not override '(renderers|render)\b", str(error)):
        file = unknown[1].replace("/", "=", 1)
        return ConfigError(
            f"{file}: sets {unknown[2]}, which this command lacks; use featuremaps run"
        )
    if unpackaged := re.match(r"In '((.+)/[^']+)': Could not override '[^'@]+@\2\.", str(error)):
        return ConfigError(f"{unpackaged[1]}: {GLOBAL}")
    if unmatched := re.match(r"(In '[^']+': )?Could not override '([^']+)'. No match", str(error)):
        file, group = unmatched[1] or "", unmatched[2]
        own = "" if choices(group) else " or ".join(options_of(group))
        remedy = f"add your own group with +{group}={own}" if own else "remove it"
        return ConfigError(f"{file}{group}: this command has no such choice; {remedy}")
    if isinstance(error, OverrideParseException):
        reason = one_line(str(error.message).splitlines()[0]).partition(" expecting {")[0]
        return ConfigError(f"{error.override!r}: {reason}; expected key=value or group=choice")
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        key, parent = str(cause.full_key or cause.key or ""), cause.parent_node
        if isinstance(parent, DictConfig) and re.search(r"not in (struct|')", str(cause)):
            names = [str(name) for name in parent if name not in ("hydra", "_target_")]
            group, _, wrong = key.rpartition(".")
            hint = _elsewhere(group, wrong) or suggestion(wrong, names, every=True)
            return ConfigError(f"{key}: no such key; {hint}")
        return ConfigError(f"{key}: {plain_words(cause)}")
    if existing := re.search(r"An item is already at '([^']+)'", str(error)):
        return ConfigError(f"+{existing[1]}: the key exists already; remove the +")
    deleted = re.search(r"Could not delete from config\. '([^']+)'", str(error))
    if deleted:
        group, _, wrong = deleted[1].rpartition(".")
        return ConfigError(f"~{deleted[1]}: no such key; {suggestion(wrong, choices(group))}")
    return ConfigError(plain_words(error))


def _elsewhere(group: str, key: str) -> str:
    """Return the remedy for a key that other choices of a group have, or an empty string."""
    if group == "hydra.launcher":
        files = sorted((conf_folder() / "launch").glob("*.yaml"))
        has = [f.stem for f in files if re.search(rf"^    {key}:", f.read_text("utf-8"), re.M)]
        return f"use it with launch={' or launch='.join(has)}" if has else ""
    has = kinds_with(group, [key]) if group in ("model", "dataset", "reduction") else []
    return f"use it with {' or '.join(f'{group}={name}' for name in has)}" if has else ""
