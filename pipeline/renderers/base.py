"""What every renderer is: a configuration that turns one stored sample into pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One layer of one sample, ready to draw.

    Attributes:
        name, alias: the layer's.
        maps: `(channel, height, width)` float32; tokens stand at their place in the grid; a vector
            is one map of its numbers, row by row, padded with NaN (`vector` is True then).
        channels: number of channels.
        vector: whether the layer has no positions.
        mask: `(height, width)`, False where `maps` holds padding.
    """

    name: str
    alias: str
    maps: Array
    channels: int
    vector: bool
    mask: Array | None = None


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """One stored sample.

    Attributes:
        index: row in the archive.
        id, label_name: the sample's.
        model: the model's name, for captions.
        image: uint8 `(height, width, rgb)`, what the model saw.
        layers: in execution order.
    """

    index: int
    id: str
    label_name: str
    model: str
    image: Array
    layers: Sequence[LayerView]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture: uint8 `(height, width, rgb)`.

    Of one layer or (None) of the whole sample.
    """

    layer: str | None
    rgb: Array


@dataclass(frozen=True, kw_only=True)
class Renderer(ABC):
    """One kind of picture."""

    @abstractmethod
    def draw(self, sample: SampleView) -> Iterator[Picture]:
        """Return the pictures of a sample."""

    def check(self, channels: dict[str, int]) -> None:  # noqa: B027 - most renderers fit every layer
        """Refuse, before anything is drawn, options that do not fit the layers.

        Args:
            channels: layer → number of channels.

        Raises:
            ConfigError: naming the option.
        """


def as_layer_view(name: str, alias: str, axes: Sequence[str], activation: Array) -> LayerView:
    """Return a stored activation as maps.

    Args:
        name, alias: the layer's.
        axes: names of the activation's axes.
        activation: one sample's.

    Raises:
        ValueError: when the axes are none that can be drawn.
    """
    values = np.asarray(activation, dtype=np.float32)
    if tuple(axes) == ("channel", "height", "width"):
        return LayerView(name=name, alias=alias, maps=values, channels=len(values), vector=False)
    if tuple(axes) in (("token", "channel"), ("channel",)):
        # Tokens without a declared grid are shown as a strip, one pixel a token.
        if values.ndim == 2:
            maps = np.ascontiguousarray(values.T)[:, None, :]
            return LayerView(name=name, alias=alias, maps=maps, channels=len(maps), vector=False)
        columns = int(np.ceil(np.sqrt(len(values))))
        rows = -(-len(values) // columns)
        square = np.full(rows * columns, np.nan, dtype=np.float32)
        square[: len(values)] = values
        mask = (np.arange(rows * columns) < len(values)).reshape(rows, columns)
        return LayerView(
            name=name,
            alias=alias,
            maps=square.reshape(1, rows, columns),
            channels=len(values),
            vector=True,
            mask=mask,
        )
    raise ValueError(f"{name}: axes {', '.join(axes)} cannot be drawn")


def caption(sample: SampleView, *parts: str) -> str:
    """Return the caption of a picture: model, then layer or kind, then sample and label."""
    label = f" ({sample.label_name})" if sample.label_name else ""
    return " · ".join([*parts, f"{sample.id}{label}", sample.model])
