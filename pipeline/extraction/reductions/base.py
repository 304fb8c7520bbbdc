"""Base class of reductions: make activations smaller on their device, before they are copied.

Positions are the pixels of maps and the tokens of the grid; prefix tokens (class, register) are not
positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from pipeline.archive.format.layer_entry import ALL_POSITIONS
from pipeline.capture.axes import Axes
from pipeline.common.configured import configured

if TYPE_CHECKING:
    from torch import Tensor


@configured
class Reduction(ABC):
    """Base class of reductions: a map from an activation to a smaller one."""

    type_key: ClassVar[str] = ""
    """Name in files; empty means the class name in snake case."""

    def axes(self, axes: Axes) -> Axes:
        """Return the axes of the reduced activation for an activation with `axes`."""
        return axes

    @abstractmethod
    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        """Return the reduced activation.

        Args:
            activation: `sample` followed by `axes.names`, on any device.
            axes: the axes after `sample`.

        Raises:
            ValueError: when the reduction does not fit the activation.
        """

    def of_layer(self, layer: str) -> Reduction:
        """Return the reduction of one layer."""
        return self

    def for_rows(self, start: int) -> Callable[[Tensor, Axes], Tensor]:
        """Return the reduction for samples that are the rows from `start` on."""
        return self

    def drawn(self, axes: Axes, shape: Sequence[int]) -> tuple[int, int] | None:
        """Return the seed and the number of positions to draw from; None without a draw."""
        return None

    def positions(self, axes: Axes) -> str:
        """Return a text for the positions that reductions and statistics are taken over."""
        count = axes.prefix_positions
        scope = "grid" if axes.grid else "tokens"
        return (
            f"{scope}, without {count} prefix token{'s' * (count > 1)}" if count else ALL_POSITIONS
        )

    def misfit(self, axes: Axes) -> str:
        """Return why layers with `axes` are left out; empty if they are kept."""
        return ""

    def check(self, layers: Sequence[str]) -> None:  # noqa: B027 - most reductions fit all layers
        """Raise ConfigError, naming the option, if the reduction does not fit the layers."""


@configured
class NoReduction(Reduction):
    """The unchanged activation."""

    type_key: ClassVar[str] = "none"

    def __call__(self, activation: Tensor, axes: Axes) -> Tensor:
        return activation
