"""Schemas for Hydra, and conversion of composed configurations to plain values.

`register` gives Hydra the kinds of each group with the fields of their dataclasses, so that
overrides of unknown keys fail early.
"""

import dataclasses
import re
import typing
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.configured import to_dict
from pipeline.common.errors import ConfigError, one_line
from pipeline.common.validation_errors import MAPPING
from pipeline.config.plugins import PLUGINS, SETTINGS, SINGLE, kinds_of, locate

_ALONE = {"loader": "default", "storage": "default", "shard": "none"}
"""Groups with a single choice → its name."""


def register(root: str) -> None:
    """Register the choices and keys of the root configuration `root` with Hydra.

    Files in `conf/` include kinds of models and the fields of layers from the group `schema`.
    """
    store = ConfigStore.instance()
    for group, name, kind in kinds_of(root):
        if not name:
            alone = {"group": group, "name": _ALONE[group]} if group in _ALONE else {}
            store.store(**{"group": "schema", "name": group, **alone}, node=schema_of(kind))
            continue
        target = f"schema/{group}" if group == "model" else group
        package = f"renderers.{name}" if group == "renderers" else None
        node = {"_target_": name, **schema_of(kind)}
        store.store(group=target, name=name, node=node, package=package)
    scalars = {"archive": MISSING, "storage_options": _plain({})}
    if root != "render":
        scalars = settings()
    store.store(group="schema", name="root", node=scalars)


def settings() -> dict[str, Any]:
    """Return the keys without a group, with defaults."""
    fields = schema_of(locate(SETTINGS)).items()
    return {name: value for name, value in fields if name not in (*PLUGINS, *SINGLE)}


def schema_of(kind: type) -> dict[str, Any]:
    """Return the fields of a configuration dataclass with defaults, `???` for required ones."""
    missing = dataclasses.MISSING
    return {
        item.name: _plain(
            item.default if item.default_factory is missing else item.default_factory()
        )
        for item in dataclasses.fields(kind)
    }


def _plain(value: Any) -> Any:
    if value is dataclasses.MISSING:
        return MISSING
    if isinstance(value, dict):  # open: accepts any key without `+`
        return OmegaConf.create(value, flags={"struct": False})
    return to_dict(value)


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values with interpolations resolved."""
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', '')}: {plain_words(error)}") from error
    return typing.cast(dict[str, Any], plain)


def plain_words(error: Exception) -> str:
    """Return the first line of an error of Hydra or OmegaConf, without names of their classes."""
    text = one_line(str(error).replace(":\n", ": ").split("\n")[0])
    text = re.sub(r'\w+ raised while [\w ]+: ("?)(.*)\1$', r"\2", text)
    expected = f"has a list where {MAPPING} is expected"
    return text.replace("Cannot merge DictConfig with ListConfig", expected)
