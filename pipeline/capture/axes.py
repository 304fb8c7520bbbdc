"""Axes: what each axis of an activation is, and the words that declare it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.common.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from torch import Tensor, nn

CHANNELS_FIRST = ("channel", "height", "width")
CHANNELS_LAST = ("height", "width", "channel")
TOKENS = ("token", "channel")
TOKENS_LAST = ("channel", "token")
VECTOR = ("channel",)
ATTENTION = ("head", "query", "key")

_PREFIX_TOKENS = re.compile(
    r"((?:cls|class|dist|distillation|reg|register|storage)_(?:token|embed|embedding))s?(?:_?\d+)?"
)

DECLARABLE = {
    "channels_first": CHANNELS_FIRST,
    "channels_last": CHANNELS_LAST,
    "tokens": TOKENS,
    "tokens_last": TOKENS_LAST,
    "vector": VECTOR,
    "attention": ATTENTION,
}
"""What `model.axes` may say of a layer."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The axes of one activation after `sample`.

    Attributes:
        names: `channel height width`, `height width channel`, `token channel`, `channel token`,
            `channel`, or `head query key`, whose heads are its channels.
        grid: height and width of the token grid, None where there is none or it is not known.
        prefix_tokens: tokens before those of the grid (class, distillation, register).
    """

    names: tuple[str, ...]
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0

    def index(self, name: str) -> int:
        """Return the position of an axis, counting `sample` as 0."""
        return 1 + self.names.index(name)

    @property
    def channel(self) -> int:
        """Position of the axis of channels or heads, counting `sample` as 0."""
        return self.index("head" if "head" in self.names else "channel")

    def positions(self, activation: Tensor) -> Tensor:
        """Return an activation without its prefix tokens, which are no positions; a view.

        What is said of a channel (means, maxima, statistics) is taken over positions: the pixels of
        maps, the tokens of the grid.
        """
        if not self.prefix_tokens:
            return activation
        axis = self.index("token")
        return activation.narrow(
            axis, self.prefix_tokens, activation.shape[axis] - self.prefix_tokens
        )


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a model source declares of its tokens.

    Attributes:
        prefix: tokens before the grid's, None where the source does not know.
        grid: height and width of the patch grid, None where the source does not know.
        stages: how many grids there are, each half as high and wide as the one before.
    """

    prefix: int | None = None
    grid: tuple[int, int] | None = None
    stages: int = 1

    @property
    def grids(self) -> list[tuple[int, int]]:
        """The grid of every stage, an odd side rounded up; none where the first is not known."""
        if self.grid is None:
            return []
        height, width = self.grid
        return [(-(-height // 2**n), -(-width // 2**n)) for n in range(self.stages)]


def named_prefix(module: nn.Module) -> int | None:
    """Return how many tokens a model's parameters put before its patches, by their names.

    `cls_token`, `class_embedding`, `dist_token`, `register_tokens` and the like are one token each,
    or `(1, token, channel)`. None where there are none of them.
    """
    found: dict[str, int] = {}
    for name, tensor in module.named_parameters():
        named = _PREFIX_TOKENS.fullmatch(name.rpartition(".")[2])
        if named:  # `cls_token_0` and `cls_token_1` stand in different branches
            count = tensor.shape[1] if tensor.ndim == 3 else 1
            found[named[1]] = max(count, found.get(named[1], 0))
    return sum(found.values()) or None


def declared(text: str, *, where: str) -> tuple[str, ...]:
    """Return the axes that a configuration's word stands for."""
    if text not in DECLARABLE:
        raise ConfigError(f"{where}: {text!r} is no order of axes; {suggestion(text, DECLARABLE)}")
    return DECLARABLE[text]
