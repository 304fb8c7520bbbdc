"""What there is to choose and to set, read from files: help imports nothing, and is quick."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pipeline.config.plugins import PLUGINS, SETTINGS, SINGLE

BY_PROGRAMS = {"sequence", "thumbnails"}
"""Kinds that only programs make."""
_PACKAGE = Path(__file__).resolve().parent.parent


def conf_folder() -> Path:
    """Return the folder of the packaged configuration, in a wheel or in a checkout."""
    inside = _PACKAGE / "conf"
    return inside if inside.is_dir() else _PACKAGE.parent / "conf"


def choices(group: str) -> list[str]:
    """Return the names of a group's packaged configurations and, but for models, of its kinds."""
    found = {path.stem for path in (conf_folder() / group).glob("*.yaml")}
    if group in PLUGINS and group != "model":
        found |= {kind for kind, _ in _kinds(PLUGINS[group].room)}
    return sorted(found - BY_PROGRAMS)


def text_of(key: str) -> str:
    """Return what the docstring of its dataclass says of a configuration key, on one line.

    >>> text_of("dataset.limit")
    'use the first samples only, this many.'
    """
    group, _, name = key.rpartition(".")
    first = group.partition(".")[0]
    base = PLUGINS[first].base if first in PLUGINS else SINGLE.get(first, SETTINGS)
    module, _, owner = base.rpartition(".")
    documented = [node for node in _classes(module) if node.name == owner]
    if first in PLUGINS:
        found = _kinds(PLUGINS[first].room)
        documented += [node for kind, node in found if group in (first, f"{first}.{kind}")]
    for node in documented:
        section = re.search(r"Attributes:\n(.*)", ast.get_docstring(node) or "", re.DOTALL)
        entries = re.split(r"\n(?=\S)", inspect.cleandoc(section[1])) if section else []
        for entry in entries:
            names, _, text = entry.partition(":")
            if name in names.split(", "):
                return " ".join(text.split())
    raise KeyError(key)


def _kinds(room: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield kind and class of every plug-in of a room; the rule is `configured.kind_of`'s."""
    folder = _file(room)
    modules = [f"{room}.{p.stem}" for p in sorted(folder.glob("*.py"))] if folder.is_dir() else []
    for node in (node for module in modules or [room] for node in _classes(module)):
        abstract = any(getattr(base, "id", "") == "ABC" for base in node.bases)
        if node.bases and node.decorator_list and not abstract and node.name[0] != "_":
            given = [
                item.value.value
                for item in node.body
                if isinstance(item, ast.AnnAssign)
                and getattr(item.target, "id", "") == "kind"
                and isinstance(item.value, ast.Constant)
            ]
            snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", node.name).lower()
            yield (str(given[0]) if given else snake), node


@cache
def _classes(module: str) -> tuple[ast.ClassDef, ...]:
    tree = ast.parse(_file(module).with_suffix(".py").read_text(encoding="utf-8"))
    return tuple(node for node in tree.body if isinstance(node, ast.ClassDef))


def _file(module: str) -> Path:
    return _PACKAGE.joinpath(*module.split(".")[1:])
