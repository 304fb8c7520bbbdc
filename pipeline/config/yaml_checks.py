"""Checks of YAML files: their encoding, and alias bombs, which expand to billions of values.

OmegaConf copies the target of each alias, so nested aliases can exhaust the memory. This module
counts the expanded values before OmegaConf reads a file.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from pipeline.common.errors import ConfigError

_MOST_VALUES = 100_000


def check_yaml_files(folders: Iterable[Path]) -> None:
    """Raise ConfigError if a YAML file in the folders expands too far, or is not plain UTF-8."""
    for path in (path for folder in folders for path in _yaml_files(folder)):
        try:
            text = path.read_text(encoding="utf-8")
            if text.startswith("\ufeff#"):
                raise ConfigError(
                    f"{path}: a byte-order mark hides its first line from Hydra; save the file as "
                    "UTF-8 without one"
                )
            if "&" not in text or "*" not in text:
                continue
            values = _values(yaml.compose(text, Loader=yaml.SafeLoader), {})
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not UTF-8; save the file as UTF-8") from None
        except (OSError, yaml.YAMLError, RecursionError):
            continue  # Hydra reports the error if it reads the file
        if values > _MOST_VALUES:
            many = "infinitely many" if values == math.inf else f"{values:,}"
            raise ConfigError(
                f"{path}: its aliases (*name) expand to {many} values, more than {_MOST_VALUES:,}; "
                "replace aliases by their values"
            )


def _yaml_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, n) for n in sorted(names) if n.endswith((".yaml", ".yml")))


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Return the number of values of a node with aliases expanded; inf for recursive nodes.

    `known` holds the counts by id of a node; inf while it is counted.
    """
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.SequenceNode) else sum(node.value, ())
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]
