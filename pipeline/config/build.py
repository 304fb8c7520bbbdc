"""Build typed, frozen objects from plain keys and values; errors name the key."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.common.errors import ConfigError, one_line, suggestion
from pipeline.common.places import refuse_secrets
from pipeline.config.plugins import BESIDE, PLUGINS, SINGLE, kinds, locate

if typing.TYPE_CHECKING:
    from pipeline.extraction.settings import Extraction
    from pipeline.rendering.options import RenderOptions
    from pipeline.rendering.renderer import Renderer

T = TypeVar("T")


def build_extraction(config: Mapping[str, Any]) -> Extraction:
    """Return the extraction of a plain configuration; groups in `BESIDE` are ignored."""
    from pipeline.extraction.settings import Extraction

    names = [item.name for item in dataclasses.fields(Extraction)]
    for key in config:
        if key not in (*names, *BESIDE):
            raise ConfigError(
                f"{key}: no such key; {suggestion(key, [*names, *BESIDE], every=True)}"
            )
    for group in ("model", "dataset"):
        if group not in config:
            raise ConfigError(f"{group}: is required; set it, e.g. {group}=…")
    bases = {group: plugin.base for group, plugin in PLUGINS.items()} | SINGLE
    values = {
        key: build(value, locate(bases[key]), key) if key in bases else value
        for key, value in config.items()
        if key in names
    }
    refuse_secrets(config.get("storage_options") or {})
    return build(values, Extraction, "")


def build_rendering(config: Mapping[str, Any]) -> tuple[dict[str, Renderer], RenderOptions]:
    """Return the renderers by name and the rendering options."""
    from pipeline.rendering.options import RenderOptions

    base: type[Renderer] = locate(PLUGINS["renderers"].base)
    nodes = config.get("renderers") or {}
    renderers = {str(name): build(node, base, f"renderers.{name}") for name, node in nodes.items()}
    if not renderers:
        raise ConfigError(
            "renderers: no renderer is selected; choose some, e.g. renderers=[grid,pca], or use "
            "featuremaps extract"
        )
    return renderers, build(config.get("render") or {}, RenderOptions, "render")


def build(node: Any, base: type[T], path: str) -> T:
    """Return the object that keys and values describe; `_target_` names a kind of `base`."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}: expected keys and values, got {one_line(node)!r}")
    values = dict(node)
    kind: Any = base
    if "_target_" in values:
        kind = _kind(str(values.pop("_target_")), base, path)
    if getattr(kind, "__abstractmethods__", None):
        raise ConfigError(f"{path}: has no kind; set {path}._target_ to a kind of {base.__name__}")
    if missing := [key for key, value in values.items() if value == "???"]:
        raise ConfigError(_required(_joined(path, missing[0])))
    try:
        return typing.cast(T, TypeAdapter(kind).validate_python(values))
    except ValidationError as error:
        raise ConfigError(_explained(error, kind, path)) from error


def _kind(name: str, base: type, path: str) -> type:
    bases = {plugin.base: group for group, plugin in PLUGINS.items()}
    group = bases.get(f"{base.__module__}.{base.__qualname__}")
    classes = kinds(group) if group else {}
    try:
        kind = classes[name] if name in classes or "." not in name else locate(name)
    except KeyError:
        hint = suggestion(name, classes)
        raise ConfigError(f"{path}._target_: unknown kind {name!r}; {hint}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}._target_: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, base) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"{path}._target_: {kind!r} is not a {base.__name__} dataclass")
    return kind


_TYPES = {"int": "an integer", "float": "a number", "bool": "true or false"}


def _explained(error: ValidationError, kind: type, path: str) -> str:
    """Return the first validation error as one line: key, fact, remedy."""
    first = error.errors(include_url=False)[0]
    location, value, context = first["loc"], first["input"], first.get("ctx", {})
    where = path
    if first["type"] != "unexpected_keyword_argument":
        location = _without_branches(kind, location)
    for step in location:
        where = f"{where}[{step}]" if isinstance(step, int) else _joined(where, str(step))
    match first["type"]:
        case "unexpected_keyword_argument":
            hint = suggestion(str(location[-1]), _keys_at(kind, location[:-1]), every=True)
            return f"{where}: no such key; {hint}"
        case "missing":
            return _required(where)
        case "enum":
            names = [str(member.value) for member in _choices_at(kind, location)]
            hint = suggestion(str(value), names)
            if where == "render.format" and str(value) in ("pdf", "svg"):
                hint = f"for vector figures, set render.figures=[{value}]"
            return f"{where}: unknown value {value!r}; {hint}"
        case "value_error":
            return f"{where}: {context['error']}".removeprefix(": ")
        case "greater_than_equal":
            return f"{where}: must be at least {context['ge']}, got {one_line(value)}"
        case _:
            text = first["msg"].replace("Input should", "must", 1)
            if plain := _TYPES.get(first["type"].partition("_")[0]):
                text = f"must be {plain}"
            return f"{where}: {text[0].lower()}{text[1:]}, got {one_line(repr(value), limit=80)}"


def _without_branches(kind: type, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return a location without pydantic's names of union branches."""
    keys: tuple[int | str, ...] = ()
    for step in location:
        if isinstance(step, int) or step in _keys_at(kind, keys) or dict in hints_at(kind, keys):
            keys = (*keys, step)
    return keys


def _required(key: str) -> str:
    return f"{key}: is required; set it, e.g. {key}=…"


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def types_in(hint: Any) -> set[type]:
    """Return the classes in a type hint."""
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    classes = {item for item in (hint, typing.get_origin(hint)) if isinstance(item, type)}
    return classes.union(*(types_in(part) for part in parts))


def hints_at(kind: type, location: tuple[int | str, ...]) -> set[type]:
    """Return the classes allowed at a location within an object of `kind`."""
    classes = {kind}
    for step in (step for step in location if isinstance(step, str)):
        for owner in [item for item in classes if dataclasses.is_dataclass(item)]:
            if step in (hints := typing.get_type_hints(owner)):
                classes = types_in(hints[step])
    return classes


def _keys_at(kind: type, location: tuple[int | str, ...]) -> list[str]:
    owners = (part for part in hints_at(kind, location) if dataclasses.is_dataclass(part))
    return [item.name for owner in owners for item in dataclasses.fields(owner)]


def _choices_at(kind: type, location: tuple[int | str, ...]) -> list[Enum]:
    enums = (part for part in hints_at(kind, location) if issubclass(part, Enum))
    return [member for enum in enums for member in enum]
