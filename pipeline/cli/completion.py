"""Shell completion of overrides: groups, choices, keys, and values of enumerations."""

from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from pipeline.cli.overrides import as_meant, composing
from pipeline.cli.shortcuts import spelled_out
from pipeline.common.errors import ConfigError
from pipeline.config.config_docs import choices
from pipeline.config.keys import choices_at

_GROUPS_ALONE = ("experiment", "launch", "sweep")  # groups without keys


def words(root: str, previous: list[str], word: str) -> list[str]:
    """Return the completions of a partial override, given the overrides before it."""
    try:
        with composing(root, None):
            config = compose(
                root, as_meant(spelled_out(previous, root), root), return_hydra_config=True
            )
    except ConfigError:
        return []  # the earlier overrides are invalid; running them reports why
    key, equals, value = word.partition("=")
    if equals:
        prefix = value[: max(value.rfind(","), value.rfind("[")) + 1]  # of a sweep or a list
        values = choices_at(root, key) or choices(key)
        return [
            f"{key}={prefix}{name}"
            for name in values
            if name.startswith(value.removeprefix(prefix))
        ]
    parent, dot, _ = word.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig):
        return []
    plain: Any = OmegaConf.to_container(node, throw_on_missing=False)
    names = [str(name) for name in plain if name not in ("_target_", "hydra")]
    completions = [
        f"{parent}{dot}{name}{'.' if isinstance(plain[name], dict) else '='}" for name in names
    ]
    if not parent:
        groups = (*(name for name in names if choices(name)), *_GROUPS_ALONE)
        completions += [f"{name}=" for name in groups]
    return sorted({text for text in completions if text.startswith(word)})
