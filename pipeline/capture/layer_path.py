"""Layer paths: where an activation is captured, in text form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

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
