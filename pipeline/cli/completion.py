"""Shell completion of overrides: groups, choices, keys, and values of enumerations."""

from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from pipeline.cli.overrides import GROUPS, as_meant, choices_in, composing
from pipeline.cli.shortcuts import spelled_out
from pipeline.common.errors import ConfigError
from pipeline.common.paths import local_path
from pipeline.config.config_docs import choices
from pipeline.config.keys import choices_at

_GROUPS_ALONE = ("experiment", "launch", "sweep")  # groups without keys


def words(root: str, previous: list[str], word: str, config_dir: str | None = None) -> list[str]:
    """Return the completions of a partial override, given the overrides and `--config-dir`."""
    folders = [local_path(config_dir).absolute()] if config_dir else []
    given = [f"--config-dir={path}" for path in folders]
    try:
        overrides = [w for w in spelled_out([*given, *previous], root) if w not in given]
        with composing(root, str(folders[0]) if folders else None):
            config = compose(root, as_meant(overrides, root), return_hydra_config=True)
    except ConfigError:
        return []  # the earlier overrides are invalid; running them reports why
    key, equals, value = word.partition("=")
    if equals:
        prefix = value[: max(value.rfind(","), value.rfind("[")) + 1]  # of a sweep or a list
        values = choices_at(root, key) or choices_in(key.lstrip("+"), folders)
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
        own = [path.name for folder in folders for path in folder.glob("*") if path.is_dir()]
        completions += [f"+{name}=" for name in own if name not in GROUPS]
    return sorted({text for text in completions if text.startswith(word)})
