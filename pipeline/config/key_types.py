"""Which values a configuration key takes, from the type hints of the dataclasses."""

from __future__ import annotations

from enum import Enum, auto
from types import UnionType
from typing import Any

from hydra.conf import HydraConf

from pipeline.config.plugins import PLUGINS, RENDER_ROOT, SETTINGS, SINGLE, kinds, locate
from pipeline.config.typed import hints_at


class Takes(Enum):
    """What the value of a key is."""

    TEXT = auto()
    TEXT_OR_NULL = auto()
    TEXTS = auto()
    DICT_OF_TEXTS = auto()
    OTHER = auto()


def takes(root: str, key: str) -> Takes:
    """Return what a key of the root configuration `root` takes; OTHER for unknown keys.

    A key that several kinds of a group share takes text where any of them says so.

    >>> takes("render", "archive"), takes("run", "layers.include"), takes("run", "seed")
    (<Takes.TEXT_OR_NULL: 2>, <Takes.TEXTS: 3>, <Takes.OTHER: 5>)
    """
    group, *rest = key.split(".")
    owners: list[Any] = []
    if key == "archive":  # its dataclass needs torch, which drawing does without
        return Takes.TEXT_OR_NULL
    if group == "hydra":
        owners = [HydraConf]
    elif root == "render" and group not in RENDER_ROOT:
        return Takes.OTHER
    elif group in PLUGINS:
        owners = list(kinds(group).values())
        rest = rest[1:] if group == "renderers" else rest
    elif group in SINGLE:
        owners = [locate(SINGLE[group])]
    elif not rest:
        owners, rest = [locate(SETTINGS)], [group]
    found = [_takes(hints_at(owner, tuple(rest))) for owner in owners] if rest else []
    return next((one for one in found if one is not Takes.OTHER), Takes.OTHER)


def _takes(types: set[type]) -> Takes:
    none = type(None)
    for wanted, meaning in (
        ({str}, Takes.TEXT),
        ({str, none}, Takes.TEXT_OR_NULL),
        ({str, tuple}, Takes.TEXTS),
        ({str, list}, Takes.TEXTS),
        ({str, dict}, Takes.DICT_OF_TEXTS),
    ):
        if types - {UnionType} == wanted:
            return meaning
    return Takes.OTHER
