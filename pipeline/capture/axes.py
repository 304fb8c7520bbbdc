"""Axes: the axis names of an activation, and the words that declare them."""

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
"""Values of `model.axes`, with the axes that they declare."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The axes of one activation after `sample`.

    Attributes:
        names: `channel height width`, `height width channel`, `token channel`, `channel token`,
            `channel`, or `head query key`, whose heads are its channels.
        grid: height and width of the token grid, of attention weights the keys'; None without
            one, or if it is unknown.
        prefix_tokens: number of tokens before the grid's (class, distillation, register).
        class_token: whether the first of them is a class token.
    """

    names: tuple[str, ...]
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    class_token: bool = False

    def index(self, name: str) -> int:
        """Return the position of an axis, counting `sample` as 0."""
        return 1 + self.names.index(name)

    @property
    def channel(self) -> int:
        """Position of the axis of channels or heads, counting `sample` as 0."""
        return self.index("head" if "head" in self.names else "channel")

    @property
    def prefix_positions(self) -> int:
        """Number of leading tokens that are not positions.

        Means, maxima and statistics of a channel are taken over positions: the pixels of maps, the
        tokens of the grid, all queries and keys of attention weights.
        """
        return self.prefix_tokens if "token" in self.names else 0

    def positions(self, activation: Tensor) -> Tensor:
        """Return a view of an activation without the tokens that are not positions."""
        if not self.prefix_positions:
            return activation
        axis = self.index("token")
        return activation.narrow(
            axis, self.prefix_tokens, activation.shape[axis] - self.prefix_tokens
        )


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A model source's declaration of its tokens.

    Attributes:
        prefix: number of tokens before the grid's; None if the source does not know.
        grid: height and width of the patch grid; None if the source does not know.
        class_token: whether the first of several prefix tokens is a class token.
        stages: number of grids, each half as high and wide as the previous one.
    """

    prefix: int | None = None
    grid: tuple[int, int] | None = None
    stages: int = 1
    class_token: bool = True

    @property
    def grids(self) -> list[tuple[int, int]]:
        """The grid of every stage, odd sides rounded up; empty if the first is unknown."""
        if self.grid is None:
            return []
        height, width = self.grid
        return [(-(-height // 2**n), -(-width // 2**n)) for n in range(self.stages)]


def named_prefix(module: nn.Module) -> dict[str, int]:
    """Return the numbers of prefix tokens among a model's parameters by name.

    `cls_token`, `class_embedding`, `dist_token`, `register_tokens` and the like are one token each,
    or `(1, token, channel)`.
    """
    counts: dict[str, int] = {}
    for name, tensor in module.named_parameters():
        match = _PREFIX_TOKENS.fullmatch(name.rpartition(".")[2])
        if match:  # `cls_token_0` and `cls_token_1` are in different branches
            count = tensor.shape[1] if tensor.ndim == 3 else 1
            counts[match[1]] = max(count, counts.get(match[1], 0))
    return counts


def declared(text: str, *, where: str) -> tuple[str, ...]:
    """Return the axes that a word of the configuration declares."""
    if text not in DECLARABLE:
        raise ConfigError(f"{where}: unknown axes {text!r}; {suggestion(text, DECLARABLE)}")
    return DECLARABLE[text]
