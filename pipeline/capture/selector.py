"""Layer selection as a configuration says it: names, globs, expressions, types, aliases.

`pipeline.capture.resolver` finds what they mean in a model.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import field, replace

from pipeline.capture.layer_path import LayerPath
from pipeline.common.configured import Texts, configured


@configured
class LayerSelector:
    """Which layers to keep.

    Attributes:
        include: exact names, globs (`layer*.conv?`; `*` also crosses dots) or `re:` with a regular
            expression for the whole name. Each may end in `:call`, `[key]` or `:in`, which then
            applies to every match (`layers.*.attn[0]`). In every model: `last`, `-2` (the last
            layer but one, of those without layers inside), `output` (what the model returns),
            `penultimate` (what the classifier receives; the output, where there is none) and
            `every_block` (a ResNet's bottlenecks, a transformer's layers: modules of one class
            that the model repeats; its top-level children, where it repeats none).
        types: of what globs, expressions and `every_block` find, only modules of these classes or
            their subclasses, e.g. `[Conv2d]`.
        exclude: none of these, even where `include` names them (written as in `include`).
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
                    if not _compiles(readings(pattern)[-1].layer[3:]):
                        raise ValueError(
                            f"{pattern!r} is no regular expression: {error}"
                        ) from error


def _compiles(expression: str) -> bool:
    try:
        re.compile(expression)
    except re.error:
        return False
    return True


def is_exact(pattern: str) -> bool:
    """Tell whether `pattern` names one layer (and is no glob and no regular expression)."""
    return not pattern.startswith("re:") and not any(mark in pattern for mark in "*?")


def readings(pattern: str) -> list[LayerPath]:
    """Return what a glob or an expression may mean, as addresses whose layer is a pattern.

    All of it stands for names; or its end, where that reads as an address's, for an element of
    every match: `[0]` may be a set of characters or a key.
    """
    mark = "re:" if pattern.startswith("re:") else ""
    element = LayerPath.parse(pattern.removeprefix(mark))
    whole, element = LayerPath(layer=pattern), replace(element, layer=mark + element.layer)
    return [whole] if element == whole else [whole, element]


def matches(pattern: str, name: str) -> bool:
    """Tell whether a glob, a `re:` expression or an exact name covers the whole of `name`."""
    if pattern.startswith("re:"):
        # One reading of a pattern may be no expression where the other is.
        return _compiles(pattern[3:]) and re.fullmatch(pattern[3:], name) is not None
    return pattern == name or (not is_exact(pattern) and fnmatch.fnmatchcase(name, pattern))
