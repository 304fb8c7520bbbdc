"""Names that tell several archives apart, for tables, titles and legends."""

import re
from collections import Counter
from collections.abc import Sequence

from pipeline.archive.format import schema
from pipeline.common.places import Place


def archive_names(paths: Sequence[Place]) -> list[str]:
    """Return the name of each archive, or its path if several archives share the name."""
    names = [schema.name_of(path) for path in paths]
    count = Counter(names)
    return [
        name if count[name] == 1 else str(path) for name, path in zip(names, paths, strict=True)
    ]


def set_apart(names: Sequence[str]) -> list[str]:
    """Return the names of a sweep's archives without hashes and without the parts common to all.

    >>> set_apart(["vgg11--seed=0-0123abcd", "vgg13--seed=0-4567abcd"])
    ['vgg11', 'vgg13']
    """
    parts = [re.sub(r"-[0-9a-f]{8}$", "", name).split("--") for name in names]
    common = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    short = ["--".join(part for part in of_name if part not in common) for of_name in parts]
    return short if all(short) and len(set(short)) == len(short) else list(names)
