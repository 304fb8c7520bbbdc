"""Addresses: where an activation is taken, as people write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

OUTPUT = "output"
"""The layer that stands for the whole model: what it returns."""

_ADDRESS = re.compile(r"(?P<layer>.*?)(?P<input>:in)?(?::(?P<call>\d+))?(?:\[(?P<key>[^\[\]]+)\])?")


@dataclass(frozen=True, kw_only=True)
class LayerPath:
    """Where an activation is taken: `layer`, `layer:call`, `layer[key]`, `layer:in`, or a mixture.

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
        """Read an address; a text that is one of `layers` is that layer, whatever it looks like."""
        found = _ADDRESS.fullmatch(text)
        if text in layers or found is None:
            return cls(layer=text)
        call = found["call"]
        return cls(
            layer=found["layer"],
            call=None if call is None else int(call),
            key=found["key"],
            input=found["input"] is not None,
        )

    def __str__(self) -> str:
        call = "" if self.call is None else f":{self.call}"
        key = "" if self.key is None else f"[{self.key}]"
        return f"{self.layer}{':in' if self.input else ''}{call}{key}"
