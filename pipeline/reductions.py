"""Reductions: an activation becomes a smaller one on its device.

Before anything is copied to the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SPATIAL_AXES = ("height", "width", "token")


@dataclass(frozen=True, kw_only=True)
class Reduction(ABC):
    """A map from an activation to a smaller one."""

    @abstractmethod
    def axes(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the axis names, after `sample`, of what becomes of an activation with `axes`."""

    @abstractmethod
    def __call__(self, activation: Tensor, axes: tuple[str, ...]) -> Tensor:
        """Return the reduced activation.

        Args:
            activation: `sample` followed by `axes`, on any device.
            axes: names of the axes after `sample`.
        """


@dataclass(frozen=True, kw_only=True)
class NoReduction(Reduction):
    """The activation as it is."""

    def axes(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """See `Reduction.axes`."""
        return axes

    def __call__(self, activation: Tensor, axes: tuple[str, ...]) -> Tensor:
        """See `Reduction.__call__`."""
        return activation


@dataclass(frozen=True, kw_only=True)
class _OverPositions(Reduction):
    """One number per channel; vectors stay as they are."""

    def axes(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """See `Reduction.axes`."""
        return tuple(axis for axis in axes if axis not in SPATIAL_AXES)

    @staticmethod
    def positions(axes: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(1 + i for i, axis in enumerate(axes) if axis in SPATIAL_AXES)


@dataclass(frozen=True, kw_only=True)
class SpatialMean(_OverPositions):
    """Mean over all positions (pixels or tokens) of each channel, summed in float32 at least."""

    def __call__(self, activation: Tensor, axes: tuple[str, ...]) -> Tensor:
        """See `Reduction.__call__`."""
        positions = self.positions(axes)
        return activation.float().mean(dim=positions) if positions else activation


@dataclass(frozen=True, kw_only=True)
class SpatialMax(_OverPositions):
    """Maximum over all positions (pixels or tokens) of each channel."""

    def __call__(self, activation: Tensor, axes: tuple[str, ...]) -> Tensor:
        """See `Reduction.__call__`."""
        positions = self.positions(axes)
        return activation.amax(dim=positions) if positions else activation


@dataclass(frozen=True, kw_only=True)
class ChannelSubset(Reduction):
    """Only these channels, in this order."""

    channels: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if (
            not self.channels
            or min(self.channels) < 0
            or len(set(self.channels)) < len(self.channels)
        ):
            raise ValueError(
                f"channels takes different numbers from 0 on, got {list(self.channels)}"
            )

    def axes(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """See `Reduction.axes`."""
        return axes

    def __call__(self, activation: Tensor, axes: tuple[str, ...]) -> Tensor:
        """See `Reduction.__call__`."""
        import torch

        dim = 1 + axes.index("channel")
        if max(self.channels) >= activation.shape[dim]:
            raise ValueError(
                f"reduction.channels: {max(self.channels)} is no channel of a layer with "
                f"{activation.shape[dim]}"
            )
        return activation.index_select(dim, torch.tensor(self.channels, device=activation.device))
