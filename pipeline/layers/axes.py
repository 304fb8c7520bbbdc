"""Axes: what each axis of an activation is, by declaration, checked against the dry batch.

The order of trust: the configuration (`model.axes`), then the module's type where the type itself
fixes the axes (a convolution returns channels first, a LayerNorm over the last axis channels last),
then what the shape proves: spatial axes keep the aspect of the input. A shape that fits two
readings is never guessed: where the model has no channels-last layer at all its maps are channels
first, otherwise the layer must be declared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.foundation.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from torch import Tensor, nn

CHANNELS_FIRST = ("channel", "height", "width")
CHANNELS_LAST = ("height", "width", "channel")
TOKENS = ("token", "channel")
TOKENS_LAST = ("channel", "token")
VECTOR = ("channel",)
ATTENTION = ("head", "query", "key")

DECLARABLE = {
    "channels_first": CHANNELS_FIRST,
    "channels_last": CHANNELS_LAST,
    "tokens": TOKENS,
    "tokens_last": TOKENS_LAST,
    "vector": VECTOR,
    "attention": ATTENTION,
}
"""What `model.axes` may say of a layer."""

_LAST = ("Linear", "LayerNorm", "RMSNorm", "Embedding", "MultiheadAttention")
_FIRST_MAPS = ("_ConvNd", "_BatchNorm", "_InstanceNorm", "GroupNorm", "PixelShuffle", "Upsample")
_POOLS = ("_MaxPoolNd", "_AvgPoolNd", "_AdaptiveMaxPoolNd", "_AdaptiveAvgPoolNd")


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

        Args:
            activation: `sample` followed by `names`.
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


def declared(text: str, *, where: str) -> tuple[str, ...]:
    """Return the axes that a configuration's word stands for.

    Raises:
        ConfigError: when it is none of `DECLARABLE`.
    """
    if text not in DECLARABLE:
        raise ConfigError(f"{where}: {text!r} is no order of axes; {suggestion(text, DECLARABLE)}")
    return DECLARABLE[text]


def by_type(module: nn.Module, dimensions: int) -> tuple[str, ...] | None:
    """Return the axes of a module's output where its type fixes them.

    Args:
        module: what returns it.
        dimensions: of the output, the sample axis included.
    """
    kinds = {kind.__name__ for kind in type(module).__mro__}
    if dimensions == 2:
        return VECTOR
    last = {3: TOKENS, 4: CHANNELS_LAST}.get(dimensions)
    first = {3: TOKENS_LAST, 4: CHANNELS_FIRST}.get(dimensions)
    if "LayerNorm2d" in kinds:  # permutes around the norm (torchvision, timm)
        return first
    if kinds & set(_LAST):
        return last
    if kinds & set(_FIRST_MAPS) or kinds & set(_POOLS):
        return first
    return None


def by_shape(shape: Sequence[int], image: tuple[int, int]) -> set[tuple[str, ...]]:
    """Return the readings of one sample's shape that keep the aspect of the input.

    Args:
        shape: three sizes, after `sample`.
        image: height and width of the input.
    """
    a, b, c = shape
    readings: set[tuple[str, ...]] = set()
    if _same_aspect((b, c), image):
        readings.add(CHANNELS_FIRST)
    if _same_aspect((a, b), image):
        readings.add(CHANNELS_LAST)
    return readings


def _same_aspect(size: tuple[int, int], image: tuple[int, int]) -> bool:
    """Tell whether a map can be the image scaled down.

    Padding and strides may round each side by one or two.
    """
    (height, width), (full_height, full_width) = size, image
    if full_height == full_width:
        return height == width
    stride = max(1.0, full_height / height)
    return abs(full_width / stride - width) <= 2


def axes_of(
    shape: Sequence[int],
    *,
    module: nn.Module,
    image: tuple[int, int],
    tokens: Tokens,
    mixed: bool,
    key: str | None = None,
    sample_axis: int = 0,
    word: str | None = None,
    where: str = "model.axes",
) -> tuple[str, ...] | str:
    """Return the names of the axes of one sample's activation, or in words why they are not known.

    Args:
        shape: sizes without the axis of the samples.
        module: what returned it.
        image: height and width of the input.
        tokens: what the source declares of its tokens.
        mixed: whether the model has channels-last layers, so that 4-D outputs may be either.
        key: which of the module's outputs it is; None where there is one.
        sample_axis: position of the axis that counts the samples.
        word: the configuration's declaration for this layer.
        where: the configuration key, for errors.

    Raises:
        ConfigError: when the declaration contradicts the dry batch.
    """
    if word is None:
        return _undeclared(shape, module, image, tokens, mixed, key, sample_axis)
    names = declared(word, where=where)
    if len(names) != len(shape):
        raise ConfigError(
            f"{where}: {word} has {len(names)} axes, the layer returns {tuple(shape)}"
        )
    return names


def _undeclared(
    shape: Sequence[int],
    module: nn.Module,
    image: tuple[int, int],
    tokens: Tokens,
    mixed: bool,
    key: str | None,
    sample_axis: int,
) -> tuple[str, ...] | str:
    if len(shape) == 1:
        return VECTOR
    if sample_axis:
        return _sequence_first(shape, module, sample_axis)
    if _is_attention(shape, module, tokens, key):
        return ATTENTION
    fixed = by_type(module, len(shape) + 1)
    if fixed is not None:
        return fixed
    if len(shape) == 2:
        return TOKENS
    if len(shape) != 3:
        return f"has shape {tuple(shape)} per sample: neither maps, tokens nor a vector"
    if not mixed:
        return CHANNELS_FIRST
    readings = by_shape(shape, image)
    if len(readings) == 1:
        return readings.pop()
    return (
        f"has shape {tuple(shape)} per sample, which may be channels first or last; declare "
        "it with model.axes={LAYER: channels_first} or channels_last"
    )


def _sequence_first(
    shape: Sequence[int], module: nn.Module, sample_axis: int
) -> tuple[str, ...] | str:
    """Return the axes of what does not keep the samples first: tokens, as `(token, sample,
    channel)`; anything else must be declared.
    """
    if len(shape) == 2 and sample_axis == 1 and by_type(module, 3) in (TOKENS, None):
        return TOKENS
    words = [word for word, names in DECLARABLE.items() if len(names) == len(shape)]
    if not words:
        return f"has shape {tuple(shape)} per sample: neither maps, tokens nor a vector"
    return (
        f"keeps the samples on axis {sample_axis}, and nothing tells what its other axes are, "
        f"{tuple(shape)}; declare them with model.axes={{LAYER: {' or '.join(words)}}}"
    )


def _is_attention(shape: Sequence[int], module: nn.Module, tokens: Tokens, key: str | None) -> bool:
    """Tell whether an output is attention weights by head: torch's own second output, or what a
    dropout returns that is all tokens of the model by all tokens.
    """
    kinds = {kind.__name__ for kind in type(module).__mro__}
    if "MultiheadAttention" in kinds and key == "1":
        return len(shape) == 3
    if len(shape) != 3 or tokens.grid is None or "Dropout" not in type(module).__name__:
        return False
    count = tokens.grid[0] * tokens.grid[1] + (tokens.prefix or 0)
    return tuple(shape[1:]) == (count, count)


def has_channels_last(types: Mapping[str, nn.Module], shapes: Mapping[str, Sequence[int]]) -> bool:
    """Tell whether some layer's type proves that the model keeps maps channels last somewhere.

    Args:
        types: layer → module.
        shapes: layer → shape of its output, sample included.
    """
    return any(
        len(shapes[name]) == 4 and by_type(module, 4) == CHANNELS_LAST
        for name, module in types.items()
        if name in shapes
    )
