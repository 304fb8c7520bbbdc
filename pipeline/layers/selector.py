"""Layer selection as a configuration says it: names, globs, expressions, types, aliases.

`pipeline.layers.selection` finds what they mean in a model.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import field

from pipeline.foundation.configured import Texts, configured


@configured
class LayerSelector:
    """Which layers to keep.

    Attributes:
        include: exact names, globs (`layer*.conv?`; `*` also crosses dots) or `re:` with a regular
            expression for the whole name. One exact name may carry `:call`, `[key]` or `:in`. In
            every model: `last`, `penultimate` (the input of the last Linear layer), `-2` (the last
            layer but one, of those without layers inside).
        types: of what globs and expressions find, only modules of these classes or their
            subclasses, e.g. `[Conv2d]`.
        exclude: of those, not these (exact names, globs, `re:`).
        aliases: name → name to show.
    """

    include: Texts = ("*",)
    types: Texts = ()
    exclude: Texts = ()
    aliases: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.include:
            raise ValueError("include is empty; name at least one layer")
        for pattern in (*self.include, *self.exclude):
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def is_exact(pattern: str) -> bool:
    """Tell whether `pattern` names one layer (and is no glob and no regular expression)."""
    return not pattern.startswith("re:") and not any(mark in pattern for mark in "*?")


def matches(pattern: str, name: str) -> bool:
    """Tell whether a glob, a `re:` expression or an exact name covers the whole of `name`."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return pattern == name or (not is_exact(pattern) and fnmatch.fnmatchcase(name, pattern))
