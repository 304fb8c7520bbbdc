"""Value types of configuration keys, from the type hints of the dataclasses."""

from enum import Enum, StrEnum, auto
from types import UnionType
from typing import Any

from hydra.conf import HydraConf

from pipeline.config.build import hints_at
from pipeline.config.plugins import PLUGINS, RENDER_ROOT, SETTINGS, SINGLE, kinds, locate


class Takes(Enum):
    """Value type of a key."""

    TEXT = auto()
    TEXT_OR_NULL = auto()
    TEXTS = auto()
    DICT_OF_TEXTS = auto()
    OTHER = auto()


def takes(root: str, key: str) -> Takes:
    """Return the value type of a key of the root configuration `root`; OTHER for unknown keys.

    If kinds of a group differ, text types win.

    >>> takes("render", "archive"), takes("run", "layers.include"), takes("run", "seed")
    (<Takes.TEXT_OR_NULL: 2>, <Takes.TEXTS: 3>, <Takes.OTHER: 5>)
    """
    if key == "archive":  # avoids importing torch, which rendering does not need
        return Takes.TEXT_OR_NULL
    if key == "storage_options":
        return Takes.DICT_OF_TEXTS
    results = [_takes(types) for types in _types_at(root, key)]
    return next((result for result in results if result is not Takes.OTHER), Takes.OTHER)


def choices_at(root: str, key: str) -> list[str]:
    """Return the values of an Enum or boolean key, or an empty list.

    >>> choices_at("run", "resume"), choices_at("run", "on_error"), choices_at("run", "seed")
    (['true', 'false'], ['raise', 'skip'], [])
    """
    values: list[str] = []
    for kind in (kind for types in _types_at(root, key) for kind in types):
        if issubclass(kind, StrEnum):
            values += kind
        elif kind is bool:
            values += ["true", "false"]
    return list(dict.fromkeys(map(str, values)))


def _types_at(root: str, key: str) -> list[set[type]]:
    """Return the value classes of a key for each kind of its group."""
    group, *rest = key.split(".")
    owners: list[Any] = []
    if group == "hydra":
        owners = [HydraConf]
    elif root == "render" and group not in RENDER_ROOT:
        return []
    elif group in PLUGINS:
        owners = list(kinds(group).values())
        rest = rest[1:] if group == "renderers" else rest
    elif group in SINGLE:
        owners = [locate(SINGLE[group])]
    elif not rest:
        owners, rest = [locate(SETTINGS)], [group]
    return [hints_at(owner, tuple(rest)) for owner in owners] if rest else []


def _takes(types: set[type]) -> Takes:
    none = type(None)
    for classes, meaning in (
        ({str}, Takes.TEXT),
        ({str, none}, Takes.TEXT_OR_NULL),
        ({str, tuple}, Takes.TEXTS),
        ({str, list}, Takes.TEXTS),
        ({str, dict}, Takes.DICT_OF_TEXTS),
    ):
        if types - {UnionType} == classes:
            return meaning
    return Takes.OTHER
