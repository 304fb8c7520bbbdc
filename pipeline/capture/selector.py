"""Layers in text form: the path of one activation, and the selection of a configuration.

`pipeline.capture.resolver` applies a selection to a model.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipeline.common.configured import Texts, configured

OUTPUT = "output"
"""Name of the model's own output among its layers."""

MARK = "@"
"""Separates a layer from the function that it calls."""

_LAYER_PATH = re.compile(
    r"(?P<layer>.*?)(?P<input>:in)?(?::(?P<call>\d+))?(?:\[(?P<key>[^\[\]]+)\])?"
)


def split_function(name: str) -> tuple[str, str]:
    """Return the layer and the function of a name; the function is empty without one.

    >>> split_function("layer1.0@add_"), split_function("fc")
    (('layer1.0', 'add_'), ('fc', ''))
    """
    layer, mark, function = name.rpartition(MARK)
    return (layer, function) if mark else (name, "")


@dataclass(frozen=True, kw_only=True)
class LayerPath:
    """Where an activation is captured: `layer`, `layer:call`, `layer[key]`, `layer:in`, or a mix.

    >>> LayerPath.parse("decoder.attn:1[0]")
    LayerPath(layer='decoder.attn', call=1, key='0', input=False)
    >>> str(LayerPath(layer="relu", call=2))
    'relu:2'
    """

    layer: str
    call: int | None = None
    key: str | None = None
    input: bool = False

    @classmethod
    def parse(cls, text: str, layers: Sequence[str] = ()) -> LayerPath:
        """Parse a layer path; a text that is one of `layers` is that layer's name."""
        match = _LAYER_PATH.fullmatch(text)
        if text in layers or match is None:
            return cls(layer=text)
        call = match["call"]
        return cls(
            layer=match["layer"],
            call=None if call is None else int(call),
            key=match["key"],
            input=match["input"] is not None,
        )

    def __str__(self) -> str:
        call = "" if self.call is None else f":{self.call}"
        key = "" if self.key is None else f"[{self.key}]"
        return f"{self.layer}{':in' if self.input else ''}{call}{key}"


@configured
class LayerSelector:
    """Which layers to keep.

    Attributes:
        include: exact names, globs (`layer*.conv?`; `*` also crosses dots) or `re:` with a regular
            expression for the whole name. Each may end in `:call`, `[key]` or `:in`, which then
            applies to every match (`layers.*.attn[0]`). `LAYER@FUNCTION` is a call of a torch
            function by the layer's own forward (`layer1.0@add_`, `blocks.0@add:1`), and
            `LAYER@attention` its attention weights; `output@rollout` is attention rollout over all
            blocks. Every model also has `last`, `-2` (the
            second-to-last layer without submodules), `output` (the model's output), `penultimate`
            (the classifier's input, or the output if the model has no classifier) and
            `every_block` (a ResNet's bottlenecks, a transformer's layers: modules of one class
            that the model repeats; its top-level children if nothing repeats).
        types: limit globs, expressions and `every_block` to modules of these classes and their
            subclasses, e.g. `[Conv2d]`.
        exclude: layers to leave out even if `include` names them (same syntax).
        aliases: name → display name.
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
                faults = [_fault(reading.layer[3:]) for reading in readings(pattern)]
                if all(faults):
                    raise ValueError(f"{pattern!r} is not a valid regular expression: {faults[0]}")


def _fault(expression: str) -> str:
    """Return why a regular expression is invalid; empty if it is valid."""
    try:
        re.compile(expression)
    except re.error as error:
        return str(error)
    return ""


def is_exact(pattern: str) -> bool:
    """Return whether `pattern` names one layer (is neither a glob nor a regular expression)."""
    return not pattern.startswith("re:") and not any(mark in pattern for mark in "*?")


def readings(pattern: str) -> list[LayerPath]:
    """Return the readings of a glob or expression, as layer paths whose layer is a pattern.

    The whole text is the pattern, or its end selects an element of every match: `[0]` may be a set
    of characters or a key.
    """
    mark = "re:" if pattern.startswith("re:") else ""
    element = LayerPath.parse(pattern.removeprefix(mark))
    whole, element = LayerPath(layer=pattern), replace(element, layer=mark + element.layer)
    return [whole] if element == whole else [whole, element]


def matches(pattern: str, name: str) -> bool:
    """Return whether a glob, a `re:` expression or an exact name matches the whole of `name`."""
    if pattern.startswith("re:"):
        # Only one of the two readings of a pattern may be a valid expression.
        return not _fault(pattern[3:]) and re.fullmatch(pattern[3:], name) is not None
    return pattern == name or (not is_exact(pattern) and fnmatch.fnmatchcase(name, pattern))
