"""Configuration: the only door from Hydra to typed objects.

`register` gives Hydra a schema for every plug-in (its fields with their Python defaults), so that
overrides of unknown keys fail before anything runs; `build_extraction` and `build_rendering` turn a
composed configuration into frozen dataclasses.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import ConfigError
from pipeline.names import one_line, suggestion

if TYPE_CHECKING:
    from pipeline.extract import Extraction
    from pipeline.render import RenderOptions
    from pipeline.renderers.base import Renderer

T = TypeVar("T")

# group → (where its plug-ins live, their base class)
_PLUGINS = {
    "model": ("pipeline.models", "pipeline.models.base.ModelSource"),
    "dataset": ("pipeline.datasets", "pipeline.datasets.base.ImageDataset"),
    "reduction": ("pipeline.reductions", "pipeline.reductions.Reduction"),
    "renderers": ("pipeline.renderers", "pipeline.renderers.base.Renderer"),
}
_SINGLE = {
    "layers": "pipeline.layers.LayerSelector",
    "loader": "pipeline.loader.Loader",
    "storage": "pipeline.execution.Storage",
    "shard": "pipeline.execution.Shard",
    "render": "pipeline.render.RenderOptions",
}
_SETTINGS = "pipeline.execution.Settings"
_RENDER_ROOT = ("render", "renderers")


def register(root: str) -> None:
    """Give Hydra the schemas that the root configuration `root` needs, under the group `schema`."""
    store = ConfigStore.instance()
    groups = [*_RENDER_ROOT] if root == "render" else [*_PLUGINS, *_SINGLE]
    for group in groups:
        if group in _SINGLE:
            store.store(group="schema", name=group, node=schema_of(locate(_SINGLE[group])))
        else:
            for name, kind in _plugins(group):
                node = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **schema_of(kind)}
                store.store(group=f"schema/{group}", name=name, node=node)
    scalars = {"archive": "???"} if root == "render" else schema_of(locate(_SETTINGS))
    store.store(group="schema", name="render_root" if root == "render" else root, node=scalars)


def locate(path: str) -> Any:
    """Import `package.module.Name`.

    Raises:
        ConfigError: when there is no such thing.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path!r} cannot be imported: {one_line(error)}") from error


def _plugins(group: str) -> Iterator[tuple[str, type]]:
    """Yield schema name and class of every plug-in of a group.

    Found by looking, there is no registry.
    """
    where, base_path = _PLUGINS[group]
    base = locate(base_path)
    package = importlib.import_module(where)
    folder = getattr(package, "__path__", None)
    modules = (
        [package]
        if folder is None
        else [
            importlib.import_module(f"{where}.{found.name}")
            for found in pkgutil.iter_modules(folder)
        ]
    )
    for module in modules:
        for kind in vars(module).values():
            own = (
                isinstance(kind, type)
                and issubclass(kind, base)
                and kind.__module__ == module.__name__
            )
            if (
                own
                and not kind.__name__.startswith("_")
                and not getattr(kind, "__abstractmethods__", None)
            ):
                yield _snake(kind.__name__), kind


def plugin_names(group: str) -> set[str]:
    """Return the full names of a group's classes."""
    return {f"{kind.__module__}.{kind.__qualname__}" for _, kind in _plugins(group)}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


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
                "???" if field.default is dataclasses.MISSING else _plain(field.default)
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
        return typing.cast(T, OmegaConf.to_object(OmegaConf.merge(structured, typed)))
    except OmegaConfBaseException as error:
        key = f"{path}.{error.full_key}" if getattr(error, "full_key", None) else path
        if "mandatory" in str(error):
            raise ConfigError(f"{key}: is required; give it, e.g. {key}=…") from error
        raise ConfigError(f"{key}: {one_line(str(error).splitlines()[0])}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error


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
        if len(options) == 1 and value is not None:
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

    parts = {group: locate(path) for group, path in _SINGLE.items() if group != "render"}
    parts |= {group: locate(_PLUGINS[group][1]) for group in ("model", "dataset", "reduction")}
    settings_kind = locate(_SETTINGS)
    scalars = [field.name for field in dataclasses.fields(settings_kind)]
    values = {
        key: value for key, value in config.items() if key not in parts and key not in _RENDER_ROOT
    }
    for key in values:
        if key not in scalars:
            raise ConfigError(
                f"{key}: no such key; {suggestion(key, [*scalars, *parts, *_RENDER_ROOT])}"
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

    base: type[Renderer] = locate(_PLUGINS["renderers"][1])
    nodes = config.get("renderers") or {}
    renderers = {str(name): build(node, base, f"renderers.{name}") for name, node in nodes.items()}
    if not renderers:
        raise ConfigError("renderers: none is left; choose some, e.g. renderers=[grid,pca]")
    return renderers, build(config.get("render") or {}, RenderOptions, "render")


def run_folder() -> Path:
    """Return the folder of the run that Hydra is carrying out."""
    return Path(HydraConfig.get().runtime.output_dir)


def is_sweep() -> bool:
    """Tell whether the running job is one of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def swept_keys(overrides: list[str]) -> list[str]:
    """Return the keys that a command line sweeps over; none where it cannot be parsed."""
    words = [word for word in overrides if not word.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
    except HydraException:
        return []  # Hydra says what is wrong when it parses them itself
    return [str(item.key_or_group) for item in parsed if item.is_sweep_override()]
