"""Plain keys and values become typed, frozen objects, or an error that names the key."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.common.errors import ConfigError, one_line, suggestion
from pipeline.config.plugins import BESIDE, PLUGINS, SINGLE, kinds, locate

if typing.TYPE_CHECKING:
    from pipeline.extraction.settings import Extraction
    from pipeline.rendering.options import RenderOptions
    from pipeline.rendering.renderer import Renderer

T = TypeVar("T")


def build_extraction(config: Mapping[str, Any]) -> Extraction:
    """Return the typed extraction of a plain configuration; what is `BESIDE` it is left aside."""
    from pipeline.extraction.settings import Extraction

    names = [item.name for item in dataclasses.fields(Extraction)]
    for key in config:
        if key not in (*names, *BESIDE):
            raise ConfigError(
                f"{key}: no such key; {suggestion(key, [*names, *BESIDE], whole=True)}"
            )
    for group in ("model", "dataset"):
        if group not in config:
            raise ConfigError(f"{group}: is required; choose one, e.g. {group}=…")
    bases = {group: plugin.base for group, plugin in PLUGINS.items()} | SINGLE
    values = {
        key: build(value, locate(bases[key]), key) if key in bases else value
        for key, value in config.items()
        if key in names
    }
    return build(values, Extraction, "")


def build_rendering(config: Mapping[str, Any]) -> tuple[dict[str, Renderer], RenderOptions]:
    """Return the renderers by name, and what to draw with them."""
    from pipeline.rendering.options import RenderOptions

    base: type[Renderer] = locate(PLUGINS["renderers"].base)
    nodes = config.get("renderers") or {}
    renderers = {str(name): build(node, base, f"renderers.{name}") for name, node in nodes.items()}
    if not renderers:
        raise ConfigError(
            "renderers: none is left; choose some, e.g. renderers=[grid,pca], or extract only: "
            "featuremaps extract"
        )
    return renderers, build(config.get("render") or {}, RenderOptions, "render")


def build(node: Any, base: type[T], path: str) -> T:
    """Return the object that a configuration node describes.

    Args:
        node: keys and values; `_target_` names the kind where `base` has several.
        base: what the object must be.
        path: where the node stands, for errors.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}: expected keys and values, got {one_line(node)!r}")
    values = dict(node)
    kind: Any = base
    if "_target_" in values:
        kind = _kind(str(values.pop("_target_")), base, path)
    if getattr(kind, "__abstractmethods__", None):
        raise ConfigError(
            f"{path}: choose one, e.g. {path}._target_ must name a kind of {base.__name__}"
        )
    if missing := [key for key, value in values.items() if value == "???"]:
        raise ConfigError(_required(_joined(path, missing[0])))
    try:
        return typing.cast(T, TypeAdapter(kind).validate_python(values))
    except ValidationError as error:
        raise ConfigError(_explained(error, kind, path)) from error


def _kind(name: str, base: type, path: str) -> type:
    bases = {plugin.base: group for group, plugin in PLUGINS.items()}
    group = bases.get(f"{base.__module__}.{base.__qualname__}")
    known = kinds(group) if group else {}
    try:
        kind = known[name] if name in known or "." not in name else locate(name)
    except KeyError:
        near = suggestion(name, known)
        raise ConfigError(f"{path}._target_: there is no {name!r}; {near}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}._target_: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, base) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"{path}._target_: {kind!r} is no {base.__name__}")
    return kind


def _explained(error: ValidationError, kind: type, path: str) -> str:
    """Return the first of pydantic's complaints as a line that says where, what and what to do."""
    first = error.errors(include_url=False)[0]
    place, given, context = first["loc"], first["input"], first.get("ctx", {})
    where = path
    if first["type"] != "unexpected_keyword_argument":
        place = _without_branches(kind, place)
    for step in place:
        where = f"{where}[{step}]" if isinstance(step, int) else _joined(where, str(step))
    match first["type"]:
        case "unexpected_keyword_argument":
            near = suggestion(str(place[-1]), _keys_at(kind, place[:-1]), whole=True)
            return f"{where}: no such key; {near}"
        case "missing":
            return _required(where)
        case "enum":
            names = [str(member.value) for member in _choices_at(kind, place)]
            near = suggestion(str(given), names)
            if where == "render.format" and str(given) in ("pdf", "svg"):
                near = f"figures for papers stand beside the pictures: render.figures=[{given}]"
            return f"{where}: {given!r} is none of {', '.join(names)}; {near}"
        case "value_error":
            return f"{where}: {context['error']}".removeprefix(": ")
        case "greater_than_equal":
            return f"{where}: must be at least {context['ge']}, got {one_line(given)}"
        case _:
            text = first["msg"].replace("Input should", "must", 1)
            return f"{where}: {text[0].lower()}{text[1:]}, got {one_line(repr(given), limit=80)}"


def _without_branches(kind: type, place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return a place without the names that pydantic gives to the alternatives of a union."""
    kept: tuple[int | str, ...] = ()
    for step in place:
        if isinstance(step, int) or step in _keys_at(kind, kept) or dict in hints_at(kind, kept):
            kept = (*kept, step)
    return kept


def _required(key: str) -> str:
    return f"{key}: is required; give it, e.g. {key}=…"


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def types_in(hint: Any) -> set[type]:
    """Return the classes that a type hint is made of."""
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    found = {one for one in (hint, typing.get_origin(hint)) if isinstance(one, type)}
    return found.union(*(types_in(part) for part in parts))


def hints_at(kind: type, place: tuple[int | str, ...]) -> set[type]:
    """Return the classes that may stand at a place within an object of `kind`."""
    found = {kind}
    for step in (step for step in place if isinstance(step, str)):
        for owner in [part for part in found if dataclasses.is_dataclass(part)]:
            if step in (hints := typing.get_type_hints(owner)):
                found = types_in(hints[step])
    return found


def _keys_at(kind: type, place: tuple[int | str, ...]) -> list[str]:
    owners = (part for part in hints_at(kind, place) if dataclasses.is_dataclass(part))
    return [item.name for owner in owners for item in dataclasses.fields(owner)]


def _choices_at(kind: type, place: tuple[int | str, ...]) -> list[Enum]:
    enums = (part for part in hints_at(kind, place) if issubclass(part, Enum))
    return [member for enum in enums for member in enum]
