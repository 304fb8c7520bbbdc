"""Pooling: means and maxima over positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.capture.axes import CHANNELS_FIRST, VECTOR, Axes
from pipeline.common.configured import Columns, configured
from pipeline.extraction.reductions.base import Reduction

if TYPE_CHECKING:
    from torch import Tensor

_POSITIONS = ("height", "width", "token", "query", "key")


@configured
class SpatialMean(Reduction):
    """Mean over all positions of each channel, summed in float32 at least."""

    def axes(self, axes: Axes) -> Axes:
        return Axes(names=VECTOR)

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        dims = tuple(1 + i for i, name in enumerate(axes.names) if name in _POSITIONS)
        return self._over(axes.positions(activation), dims) if dims else activation

    def _over(self, values: Tensor, dims: tuple[int, ...]) -> Tensor:
        return values.float().mean(dim=dims)


@configured
class SpatialMax(SpatialMean):
    """Maximum over all positions of each channel."""

    def _over(self, values: Tensor, dims: tuple[int, ...]) -> Tensor:
        return values.amax(dim=dims)


@configured
class AverageGrid(Reduction):
    """Maps averaged to `height` × `width` cells, channels first.

    Vectors and tokens without a grid are unchanged. Cells are those of
    `torch.nn.functional.adaptive_avg_pool2d`.
    """

    height: Columns = 7
    width: Columns = 7

    def axes(self, axes: Axes) -> Axes:
        cut = "height" in axes.names or ("token" in axes.names and axes.grid)
        return Axes(names=CHANNELS_FIRST) if cut else axes

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        from torch.nn import functional as F

        if self.axes(axes) is axes:
            return activation
        values = axes.positions(activation).movedim(axes.index("channel"), 1)
        if axes.grid:
            values = values.reshape(*values.shape[:2], *axes.grid)
        return F.adaptive_avg_pool2d(values.float(), (self.height, self.width))
