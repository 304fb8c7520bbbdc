"""Less of attention weights: one query, or the mean over heads."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from pipeline.capture.axes import ATTENTION, TOKENS_LAST, Axes
from pipeline.common.configured import configured
from pipeline.extraction.reductions.base import Reduction

if TYPE_CHECKING:
    from torch import Tensor


class Queries(StrEnum):
    """Which queries' attention to keep."""

    CLASS = "class"
    MEAN = "mean"
    ALL = "all"


class Heads(StrEnum):
    """Which heads' attention to keep."""

    ALL = "all"
    MEAN = "mean"


@configured
class Attention(Reduction):
    """Less of attention weights; other layers are unchanged.

    With one query, the heads become channels and the keys tokens, so that everything for maps of
    tokens also applies to attention.

    Attributes:
        query: `class` (the class token's row; the mean over queries if the model has no class
            token), `mean` (over all queries) or `all`.
        heads: `all` or `mean`.
    """

    query: Queries = Queries.CLASS
    heads: Heads = Heads.ALL

    def axes(self, axes: Axes) -> Axes:
        if axes.names != ATTENTION or self.query is Queries.ALL:
            return axes
        return replace(axes, names=TOKENS_LAST)

    def positions(self, axes: Axes) -> str:
        return super().positions(self.axes(axes))

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        if axes.names != ATTENTION:
            return activation
        if self.heads is Heads.MEAN:
            activation = activation.float().mean(1, keepdim=True)
        if self.query is Queries.ALL:
            return activation
        if self.query is Queries.CLASS and axes.class_token:
            return activation[:, :, 0]
        return activation.float().mean(2)
