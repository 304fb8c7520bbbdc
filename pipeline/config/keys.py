"""The keys of the configuration, from the dataclasses: their names, value types and kinds."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from types import UnionType
from typing import Any, Literal

import yaml
from hydra.conf import HydraConf

from pipeline.common.validation_errors import choices_of, hints_at
from pipeline.config.config_docs import BY_PROGRAMS, conf_folder
from pipeline.config.hydra_schema import schema_of, settings
from pipeline.config.plugins import SETTINGS, kinds, kinds_of, locate


@cache
def known_keys(root: str) -> tuple[str, ...]:
    """Return the dotted keys of a root configuration, for every kind of each group.

    >>> "dataset.root" in known_keys("extract"), "render.samples" in known_keys("extract")
    (True, False)
    """
    keys = ["archive", "storage_options"] if root == "render" else list(settings())
    for group, name, kind in kinds_of(root):
        if name not in BY_PROGRAMS:
            prefix = f"{group}.{name}" if group == "renderers" else group
            keys += _dotted(prefix, schema_of(kind))
    return tuple(dict.fromkeys(keys))


def _dotted(prefix: str, fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        yield f"{prefix}.{name}"
        if isinstance(value, dict):
            yield from _dotted(f"{prefix}.{name}", value)


def full_keys(root: str, key: str) -> list[str]:
    """Return the keys with the suffix `key` and the fewest parts; `key` itself if complete.

    >>> full_keys("run", "weights"), full_keys("run", "batch_size"), full_keys("run", "pca.fit")
    (['model.weights'], ['loader.batch_size'], ['renderers.pca.fit'])
    """
    keys = known_keys(root)
    if key in keys:
        return [key]
    matches = [name for name in keys if name.endswith(f".{key}")]
    fewest = min((name.count(".") for name in matches), default=0)
    return [name for name in matches if name.count(".") == fewest]


def kinds_with(group: str, names: Iterable[str]) -> list[str]:
    """Return the kinds of a group that have all given keys.

    >>> kinds_with("dataset", ["shards", "limit"])
    ['webdataset']
    """
    available = {name: kind for name, kind in kinds(group).items() if name not in BY_PROGRAMS}
    return sorted(name for name, kind in available.items() if {*names} <= {*schema_of(kind)})


def default_kind(root: str, group: str) -> str:
    """Return the default kind of a group.

    >>> default_kind("run", "dataset"), default_kind("run", "model")
    ('sample_images', 'efficientnet_lite')
    """
    defaults = yaml.safe_load((conf_folder() / f"{root}.yaml").read_text("utf-8"))["defaults"]
    choice = next(str(item[group]) for item in defaults if isinstance(item, dict) and group in item)
    file = conf_folder() / group / f"{choice}.yaml"
    schema = (
        re.search(rf"/schema/{group}/(\w+)@", file.read_text("utf-8")) if file.exists() else None
    )
    return schema[1] if schema else choice


Takes = Literal["text", "text or null", "texts", "texts by name", "other"]
"""Value type of a key."""
_TAKES: dict[frozenset[type], Takes] = {
    frozenset((str,)): "text",
    frozenset((str, type(None))): "text or null",
    frozenset((str, tuple)): "texts",
    frozenset((str, list)): "texts",
    frozenset((str, dict)): "texts by name",
}


def takes(root: str, key: str) -> Takes:
    """Return the value type of a key of the root configuration `root`; other for unknown keys.

    If kinds of a group differ, text types win.

    >>> takes("render", "archive"), takes("run", "layers.include"), takes("run", "seed")
    ('text or null', 'texts', 'other')
    """
    if key == "archive":  # avoids importing torch, which rendering does not need
        return "text or null"
    if key == "storage_options":
        return "texts by name"
    types = (frozenset(classes - {UnionType}) for classes in _types_at(root, key))
    return next((_TAKES[classes] for classes in types if classes in _TAKES), "other")


def choices_at(root: str, key: str) -> list[str]:
    """Return the values of an Enum, Literal or boolean key, or an empty list.

    >>> choices_at("run", "resume"), choices_at("run", "on_error"), choices_at("run", "seed")
    (['true', 'false'], ['raise', 'skip'], [])
    """
    return list(dict.fromkeys(choices_of(chain.from_iterable(_types_at(root, key)))))


def _types_at(root: str, key: str) -> list[set[Any]]:
    """Return the value classes of a key for each kind of its group."""
    group, *rest = key.split(".")
    owners = [kind for name, _, kind in kinds_of(root) if name == group]
    if group == "renderers":
        rest = rest[1:]
    elif group == "hydra":
        owners = [HydraConf]
    elif not rest and root != "render":
        owners, rest = [locate(SETTINGS)], [group]
    return [hints_at(owner, tuple(rest)) for owner in owners] if rest else []
