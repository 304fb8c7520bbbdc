"""What every renderer is: a configuration that turns one stored sample into pictures."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from pipeline.archive.reader import Archive

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
        statistics: the layer's figures over the whole dataset, `(channel,)` each: count mean std
            min max zero_fraction nonfinite_count; empty where there are none.
    """

    name: str
    alias: str
    maps: Array
    channels: int
    vector: bool
    mask: Array | None = None
    statistics: Mapping[str, Array] = field(default_factory=dict)


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

    Of one layer or (None) of all; `title` says what it is where it is not of a sample.
    """

    layer: str | None
    rgb: Array
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Renderer(ABC):  # noqa: B024 - a renderer overrides what it draws, of two kinds
    """One kind of picture: of every sample, or of the whole archive.

    Attributes:
        of_samples: whether it draws samples.
        per_layer: whether it draws one picture per layer of a sample, or one of all layers.
    """

    of_samples: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        """Return the pictures of a sample; none where the renderer draws the model only."""
        return iter(())

    def draw_archive(self, archive: Archive) -> Iterator[Picture]:
        """Return the pictures of the whole archive (its model, its dataset), drawn once.

        Raises:
            ConfigError: naming the option that does not fit the archive.
        """
        return iter(())

    def fitted(self, archive: Archive, folder: Path) -> Renderer:
        """Return this renderer, or one that also knows what it needs of the whole dataset.

        Called once, before anything is drawn.

        Args:
            archive: what will be drawn.
            folder: where this renderer's pictures go; what was fitted is kept there.
        """
        return self

    def check(self, channels: dict[str, int]) -> None:  # noqa: B027 - most renderers fit every layer
        """Refuse, before anything is drawn, options that do not fit the layers.

        Args:
            channels: layer → number of channels.

        Raises:
            ConfigError: naming the option.
        """


def as_layer_view(
    name: str,
    alias: str,
    axes: Sequence[str],
    activation: Array,
    *,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int = 0,
    statistics: Mapping[str, Array] | None = None,
) -> LayerView:
    """Return a stored activation as maps.

    Args:
        name, alias: the layer's.
        axes: names of the activation's axes.
        activation: one sample's.
        grid: height and width of the token grid; tokens without one are shown as a strip.
        prefix_tokens: tokens before the grid's; they are not drawn.
        statistics: see `LayerView`.

    Raises:
        ValueError: when the axes are none that can be drawn.
    """
    values = np.asarray(activation, dtype=np.float32)
    order = tuple(axes)
    figures = statistics or {}
    if "channel" in order and len(order) > 1:
        maps = np.moveaxis(values, order.index("channel"), 0)
        if "token" in order:
            height, width = grid or (1, maps.shape[1] - prefix_tokens)
            maps = maps[:, prefix_tokens:].reshape(len(maps), height, width)
        maps = np.ascontiguousarray(maps)
        return LayerView(
            name=name, alias=alias, maps=maps, channels=len(maps), vector=False, statistics=figures
        )
    if order == ("channel",):
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
            statistics=figures,
        )
    raise ValueError(f"{name}: axes {', '.join(axes)} cannot be drawn")


def caption(sample: SampleView, *parts: str) -> str:
    """Return the caption of a picture: model, then layer or kind, then sample and label."""
    label = f" ({sample.label_name})" if sample.label_name else ""
    return " · ".join([*parts, f"{sample.id}{label}", sample.model])
