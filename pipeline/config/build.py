"""Build typed, frozen objects from plain keys and values; errors name the key."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.common.errors import ConfigError, one_line, suggestion
from pipeline.common.places import refuse_secrets
from pipeline.common.validation_errors import explained, joined, required
from pipeline.config.plugins import BESIDE, PLUGINS, SINGLE, kinds, locate

if typing.TYPE_CHECKING:
    from pipeline.extraction.settings import Extraction
    from pipeline.rendering.options import RenderOptions
    from pipeline.rendering.renderer import Renderer

T = TypeVar("T")
GLOBAL = "begin the file with the line `# @package _global_`"
"""Remedy for a file whose keys are taken for those of its group."""


def build_extraction(config: Mapping[str, Any]) -> Extraction:
    """Return the extraction of a plain configuration; groups in `BESIDE` are ignored."""
    from pipeline.extraction.settings import Extraction

    names = [item.name for item in dataclasses.fields(Extraction)]
    for key in config:
        if key not in (*names, *BESIDE):
            hint = suggestion(key, [*names, *BESIDE], every=True)
            if isinstance(config[key], (Mapping, list)):  # a file of this group
                hint = f"{GLOBAL}, or {hint}"
            raise ConfigError(f"{key}: no such key; {hint}")
    bases = PLUGINS | SINGLE
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

    base: type[Renderer] = locate(PLUGINS["renderers"])
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
        raise ConfigError(required(joined(path, missing[0])))
    try:
        return typing.cast(T, TypeAdapter(kind).validate_python(values))
    except ValidationError as error:
        raise ConfigError(explained(error, kind, path)) from error


def _kind(name: str, base: type, path: str) -> type:
    groups = [group for group, path in PLUGINS.items() if path.endswith(f".{base.__name__}")]
    classes = kinds(groups[0]) if groups else {}
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
