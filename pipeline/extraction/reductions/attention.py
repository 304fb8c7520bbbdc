"""Less of attention weights: one query, or the mean over heads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pipeline.capture.axes import ATTENTION, TOKENS_LAST, Axes
from pipeline.common.configured import configured
from pipeline.extraction.reductions.base import Reduction

if TYPE_CHECKING:
    from torch import Tensor


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

    query: Literal["class", "mean", "all"] = "class"
    heads: Literal["all", "mean"] = "all"

    def axes(self, axes: Axes) -> Axes:
        if axes.names != ATTENTION or self.query == "all":
            return axes
        return replace(axes, names=TOKENS_LAST)

    def positions(self, axes: Axes) -> str:
        return super().positions(self.axes(axes))

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        if axes.names != ATTENTION:
            return activation
        if self.heads == "mean":
            activation = activation.float().mean(1, keepdim=True)
        if self.query == "all":
            return activation
        if self.query == "class" and axes.class_token:
            return activation[:, :, 0]
        return activation.float().mean(2)
