"""All configuration keys, from the dataclasses; used to complete short keys."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from pipeline.config.config_docs import BY_PROGRAMS, conf_folder
from pipeline.config.hydra_schema import schema_of
from pipeline.config.plugins import PLUGINS, RENDER_ROOT, SETTINGS, SINGLE, kinds, locate


@cache
def known_keys(root: str) -> tuple[str, ...]:
    """Return the dotted keys of a root configuration, for every kind of each group.

    >>> "dataset.root" in known_keys("extract"), "render.samples" in known_keys("extract")
    (True, False)
    """
    if root == "render":
        groups, keys = [*RENDER_ROOT], ["archive", "storage_options"]
    else:
        groups = [name for name in (*PLUGINS, *SINGLE) if root == "run" or name not in RENDER_ROOT]
        keys = list(schema_of(locate(SETTINGS), leave_out=(*PLUGINS, *SINGLE)))
    for group in groups:
        if group in SINGLE:
            keys += _dotted(group, schema_of(locate(SINGLE[group])))
        for name in kinds(group) if group in PLUGINS else ():
            if name not in BY_PROGRAMS:
                prefix = f"{group}.{name}" if group == "renderers" else group
                keys += _dotted(prefix, schema_of(kinds(group)[name]))
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


def kinds_with(group: str, names: Iterator[str] | list[str]) -> list[str]:
    """Return the kinds of a group that have all given keys.

    >>> kinds_with("dataset", ["shards", "limit"])
    ['webdataset']
    """
    required = set(names)
    return sorted(
        name
        for name, kind in kinds(group).items()
        if name not in BY_PROGRAMS and required <= set(schema_of(kind))
    )


def default_kind(root: str, group: str) -> str:
    """Return the default kind of a group.

    >>> default_kind("run", "dataset"), default_kind("run", "model")
    ('sample_images', 'efficientnet_lite')
    """
    defaults = yaml.safe_load((conf_folder() / f"{root}.yaml").read_text("utf-8"))["defaults"]
    choice = next(str(item[group]) for item in defaults if isinstance(item, dict) and group in item)
    file = conf_folder() / group / f"{choice}.yaml"
    if not file.exists():
        return choice
    schema = re.search(rf"/schema/{group}/(\w+)@", file.read_text("utf-8"))
    return schema[1] if schema else choice
