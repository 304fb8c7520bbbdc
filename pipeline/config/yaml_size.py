"""YAML files whose aliases explode: a few lines that stand for billions of values.

OmegaConf copies what an alias names, so ten levels of ten take all memory. They are counted here
before anything reads them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from pipeline.common.errors import ConfigError

_MOST_VALUES = 100_000


def refuse_explosions(folders: Iterable[Path]) -> None:
    """Refuse configuration folders with a YAML file that stands for too many values.

    Hidden folders are left out. What is no YAML is left to whoever reads it.
    """
    for path in (path for folder in folders for path in _yaml_files(folder)):
        try:
            text = path.read_text(encoding="utf-8")
            if "&" not in text or "*" not in text:
                continue
            values = _values(yaml.compose(text, Loader=yaml.SafeLoader), {})
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
            continue
        if values > _MOST_VALUES:
            many = "endlessly many" if values == math.inf else f"{values:,}"
            raise ConfigError(
                f"{path}: its aliases (*name) stand for {many} values, more than {_MOST_VALUES:,}; "
                "write out what is needed"
            )


def _yaml_files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if name.endswith((".yaml", ".yml")))


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Return how many values a node stands for, every alias written out; inf where it holds itself.

    Args:
        node: of the document's graph, in which an alias is the node that it names.
        known: node's id → its number; inf while it is counted.
    """
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.SequenceNode) else sum(node.value, ())
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]
