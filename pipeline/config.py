"""Configuration: the only door from Hydra to typed objects.

`register` gives Hydra a schema for every plug-in (its fields with their Python defaults), so that
overrides of unknown keys fail before anything runs; `build_extraction` and `build_rendering` turn a
composed configuration into frozen dataclasses.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import ConfigError
from pipeline.names import one_line, suggestion
from pipeline.plugins import PLUGINS, RENDER_ROOT, SETTINGS, SINGLE, locate, plugins

if TYPE_CHECKING:
    from pipeline.extract import Extraction
    from pipeline.render import RenderOptions
    from pipeline.renderers.base import Renderer

T = TypeVar("T")


def register(root: str) -> None:
    """Give Hydra the schemas that the root configuration `root` needs, under the group `schema`."""
    store = ConfigStore.instance()
    groups = [*RENDER_ROOT] if root == "render" else [*PLUGINS, *SINGLE]
    for group in groups:
        if group in SINGLE:
            store.store(group="schema", name=group, node=schema_of(locate(SINGLE[group])))
        else:
            for name, kind in plugins(group):
                node = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **schema_of(kind)}
                store.store(group=f"schema/{group}", name=name, node=node)
    scalars = {"archive": MISSING} if root == "render" else schema_of(locate(SETTINGS))
    store.store(group="schema", name="render_root" if root == "render" else root, node=scalars)


def schema_of(kind: type) -> dict[str, Any]:
    """Return the fields of a configuration dataclass with their defaults as plain values (`???`.

    Required).
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            values[field.name] = _plain(field.default_factory())
        else:
            values[field.name] = (
                MISSING if field.default is dataclasses.MISSING else _plain(field.default)
            )
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):  # open: any key may be given, without Hydra's `+`
        return OmegaConf.create(value, flags={"struct": False})
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def build(node: Any, base: type[T], path: str) -> T:
    """Return the object that a configuration node describes.

    Args:
        node: keys and values; `_target_` names the class where `base` has several.
        base: what the object must be.
        path: where the node stands, for errors.

    Raises:
        ConfigError: naming the configuration path, for unknown keys, wrong types, values out of
            range and classes that are no `base`.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}: expected keys and values, got {one_line(node)!r}")
    values = dict(node)
    kind: Any = base
    if "_target_" in values:
        try:
            kind = locate(str(values.pop("_target_")))
        except ConfigError as error:
            raise ConfigError(f"{path}._target_: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, base) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"{path}._target_: {kind!r} is no {base.__name__}")
    if getattr(kind, "__abstractmethods__", None):
        raise ConfigError(
            f"{path}: choose one, e.g. {path}._target_ must name a kind of {base.__name__}"
        )
    typed = _prepared(kind, values, path)
    try:
        structured = OmegaConf.structured(kind)
        _unlock(structured)
        return typing.cast(T, OmegaConf.to_object(OmegaConf.merge(structured, _literal(typed))))
    except OmegaConfBaseException as error:
        key = f"{path}.{error.full_key}" if getattr(error, "full_key", None) else path
        if "mandatory" in str(error):
            raise ConfigError(f"{key}: is required; give it, e.g. {key}=…") from error
        raise ConfigError(f"{key}: {one_line(str(error).splitlines()[0])}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error


def _literal(value: Any) -> Any:
    """Return plain values in which `${` stands for itself.

    Interpolations were resolved when the configuration was composed; what still looks like one is a
    text, perhaps out of an archive, and no resolver must see it.
    """
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_literal(item) for item in value]
    if isinstance(value, str) and not isinstance(value, Enum):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    return value


def _unlock(node: DictConfig) -> None:
    """Let values be merged into the schema of frozen dataclasses."""
    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            _unlock(child)


def _prepared(kind: type, values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Check keys and closed choices with helpful errors.

    And take a single value for a list of one.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    result = {}
    for key, value in values.items():
        if key not in names:
            raise ConfigError(f"{path}.{key}: no such key; {suggestion(str(key), names)}")
        options = [hint for hint in _alternatives(hints[key]) if hint is not type(None)]
        where = f"{path}.{key}"
        if len(options) == 1 and value is not None and value != MISSING:
            (hint,) = options
            if isinstance(hint, type) and issubclass(hint, Enum):
                value = _choice(hint, value, where)
            elif (
                isinstance(hint, type)
                and dataclasses.is_dataclass(hint)
                and isinstance(value, Mapping)
            ):
                value = _prepared(hint, value, where)
            elif typing.get_origin(hint) is tuple:
                value = list(value) if isinstance(value, (list, tuple)) else [value]
                item = typing.get_args(hint)[0]
                if isinstance(item, type) and issubclass(item, Enum):
                    value = [_choice(item, each, f"{where}[{i}]") for i, each in enumerate(value)]
        result[key] = value
    return result


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _choice(kind: type[Enum], value: Any, path: str) -> Enum:
    for member in kind:
        if value is member or str(value) == str(member.value):
            return member
    names = [str(member.value) for member in kind]
    raise ConfigError(
        f"{path}: {value!r} is none of {', '.join(names)}; {suggestion(str(value), names)}"
    )


def choices_at(config: DictConfig, key: str) -> list[str]:
    """Return the values of a key that takes a few only (an Enum, a truth value), else nothing."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig):
        return []
    target = node.get("_target_") or (SINGLE.get(parent) if parent else SETTINGS)
    hints = typing.get_type_hints(locate(target)) if target else {}
    found: list[str] = []
    for hint in _alternatives(hints.get(name)):
        hint = (typing.get_args(hint) or (hint,))[0]
        if isinstance(hint, type) and issubclass(hint, Enum):
            found += [str(member.value) for member in hint]
        elif hint is bool:
            found += ["true", "false"]
    return found


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values, interpolations resolved.

    Raises:
        ConfigError: when an interpolation leads nowhere.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{getattr(error, 'full_key', '')}: {one_line(str(error).splitlines()[0])}"
        ) from error
    return typing.cast(dict[str, Any], plain)


def build_extraction(config: Mapping[str, Any]) -> Extraction:
    """Return the typed extraction of a plain configuration (its render part is left aside).

    Raises:
        ConfigError: see `build`.
    """
    from pipeline.extract import Extraction

    parts = {group: locate(path) for group, path in SINGLE.items() if group != "render"}
    parts |= {group: locate(PLUGINS[group][1]) for group in ("model", "dataset", "reduction")}
    settings_kind = locate(SETTINGS)
    scalars = [field.name for field in dataclasses.fields(settings_kind)]
    values = {
        key: value for key, value in config.items() if key not in parts and key not in RENDER_ROOT
    }
    for key in values:
        if key not in scalars:
            raise ConfigError(
                f"{key}: no such key; {suggestion(key, [*scalars, *parts, *RENDER_ROOT])}"
            )
    for group in ("model", "dataset"):
        if group not in config:
            raise ConfigError(f"{group}: is required; choose one, e.g. {group}=…")
    try:
        settings = build(values, settings_kind, "")
    except ConfigError as error:
        raise ConfigError(str(error).lstrip(".")) from None
    built = {
        group: build(config[group], base, group) for group, base in parts.items() if group in config
    }
    return Extraction(**{name: getattr(settings, name) for name in scalars}, **built)


def build_rendering(config: Mapping[str, Any]) -> tuple[dict[str, Renderer], RenderOptions]:
    """Return the renderers by name, and what to draw with them.

    Raises:
        ConfigError: see `build`.
    """
    from pipeline.render import RenderOptions

    base: type[Renderer] = locate(PLUGINS["renderers"][1])
    nodes = config.get("renderers") or {}
    renderers = {str(name): build(node, base, f"renderers.{name}") for name, node in nodes.items()}
    if not renderers:
        raise ConfigError("renderers: none is left; choose some, e.g. renderers=[grid,pca]")
    return renderers, build(config.get("render") or {}, RenderOptions, "render")


def run_folder() -> Path:
    """Return the folder of the run that Hydra is carrying out."""
    return Path(HydraConfig.get().runtime.output_dir)
