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


def token_axes(count: int, tokens: Tokens, image: tuple[int, int], names: tuple[str, ...]) -> Axes:
    """Return the axes of `count` tokens with their grid, as far as the source declares what must be
    known.

    Args:
        count: number of tokens.
        tokens: the source's declaration.
        image: height and width of the input.
        names: `TOKENS` or `TOKENS_LAST`.
    """
    for height, width in tokens.grids:
        for prefix in (tokens.prefix or 0, 0):
            if count == height * width + prefix:
                return Axes(names=names, grid=(height, width), prefix_tokens=prefix)
    if tokens.prefix is not None:
        for prefix in dict.fromkeys((tokens.prefix, 0)):
            grid = _grid_of(count - prefix, image)
            if grid is not None:
                return Axes(names=names, grid=grid, prefix_tokens=prefix)
    return Axes(names=names)


def _grid_of(count: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """Return the only grid of `count` tokens with the input's aspect, None where there is none."""
    height = round((count * image[0] / image[1]) ** 0.5) if count > 0 else 0
    if height and count % height == 0 and height * image[1] == count // height * image[0]:
        return (height, count // height)
    return None


def axes_of(
    shape: Sequence[int],
    *,
    module: nn.Module,
    image: tuple[int, int],
    tokens: Tokens,
    mixed: bool,
    word: str | None = None,
    where: str = "model.axes",
) -> Axes | str:
    """Return the axes of one sample's activation, or in words why they are not known.

    Args:
        shape: sizes after `sample`.
        module: what returned it.
        image: height and width of the input.
        tokens: what the source declares of its tokens.
        mixed: whether the model has channels-last layers, so that 4-D outputs may be either.
        word: the configuration's declaration for this layer.
        where: the configuration key, for errors.

    Raises:
        ConfigError: when the declaration contradicts the dry batch.
    """
    if word is not None:
        names = declared(word, where=where)
        if len(names) != len(shape):
            raise ConfigError(
                f"{where}: {word} has {len(names)} axes, the layer returns {tuple(shape)}"
            )
    else:
        found = _undeclared(shape, module, image, tokens, mixed)
        if isinstance(found, str):
            return found
        names = found
    if "token" in names:
        return token_axes(shape[names.index("token")], tokens, image, names)
    return Axes(names=names)


def _undeclared(
    shape: Sequence[int], module: nn.Module, image: tuple[int, int], tokens: Tokens, mixed: bool
) -> tuple[str, ...] | str:
    if _is_attention(shape, module, tokens):
        return ATTENTION
    fixed = by_type(module, len(shape) + 1)
    if fixed is not None:
        return fixed
    if len(shape) == 1:
        return VECTOR
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


def _is_attention(shape: Sequence[int], module: nn.Module, tokens: Tokens) -> bool:
    """Tell whether a dropout returns attention weights: all tokens of the model by all tokens."""
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
