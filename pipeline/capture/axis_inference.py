"""Axis inference: what the axes of an activation are, from the dummy batch.

The order of trust: the configuration (`model.axes`), then the module's type where the type itself
fixes the axes (a convolution returns channels first, a LayerNorm over the last axis channels last),
then what the shape proves: spatial axes keep the aspect of the input. A shape that fits two
readings is never guessed: where the model has no channels-last layer at all its maps are channels
first, otherwise the layer must be declared. So must be what a model with tokens returns as squares
of a size that none of its maps has: it may be attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pipeline.capture.axes import (
    ATTENTION,
    CHANNELS_FIRST,
    CHANNELS_LAST,
    DECLARABLE,
    TOKENS,
    TOKENS_LAST,
    VECTOR,
    Tokens,
    declared,
)
from pipeline.capture.trace import LayerCall
from pipeline.common.errors import ConfigError

_LAST = ("Linear", "LayerNorm", "RMSNorm", "Embedding", "MultiheadAttention")
_FIRST_MAPS = ("_ConvNd", "_BatchNorm", "_InstanceNorm", "GroupNorm", "PixelShuffle", "Upsample",
               "Unfold")  # fmt: skip
_POOLS = ("_MaxPoolNd", "_AvgPoolNd", "_AdaptiveMaxPoolNd", "_AdaptiveAvgPoolNd")


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What the layers of a model whose type fixes their axes tell of the others.

    Attributes:
        image: height and width of the input.
        channels_last: whether some maps are channels last, so that others may be either.
        token_counts: numbers of tokens; empty for a model without any.
        map_sizes: heights and widths of maps, and of the grid of the patches.
    """

    image: tuple[int, int]
    channels_last: bool = False
    token_counts: frozenset[int] = frozenset()
    map_sizes: frozenset[tuple[int, int]] = frozenset()


def model_sizes(
    calls: Sequence[LayerCall],
    modules: Mapping[str, nn.Module],
    image: tuple[int, int],
    tokens: Tokens,
) -> ModelSizes:
    """Return what the dummy batch tells of a model's sizes."""
    counts, maps, last = set[int](), {image, *tokens.grids}, False
    for call in calls:
        tensor = call.outputs.get(None)
        if tensor is None or tensor.sample_axis() != 0:
            continue
        module, shape = modules[call.layer], tensor.shape
        names = by_type(module, len(shape))
        if names == TOKENS:
            counts.add(shape[1])
        elif names == CHANNELS_FIRST:
            maps.add((shape[2], shape[3]))
        elif names == CHANNELS_LAST:
            last = True
            if not isinstance(module, nn.Linear):  # which may mix heads of attention
                maps.add((shape[1], shape[2]))
    for height, width in tokens.grids:
        counts.add(height * width + (tokens.prefix or 0))
    return ModelSizes(
        image=image,
        channels_last=last,
        token_counts=frozenset(counts),
        map_sizes=frozenset(maps),
    )


def axes_of(
    shape: Sequence[int],
    *,
    module: nn.Module,
    sizes: ModelSizes,
    key: str | None = None,
    others: Sequence[Sequence[int]] = (),
    sample_axis: int = 0,
    word: str | None = None,
    where: str = "model.axes",
) -> tuple[str, ...] | str:
    """Return the names of the axes of one sample's activation, or in words why they are not known.

    Args:
        shape: sizes without the axis of the samples.
        module: what returned it.
        sizes: of the model.
        key: which of the module's outputs it is; None where there is one.
        others: sizes of the module's outputs, this one among them.
        sample_axis: position of the axis that counts the samples.
        word: the configuration's declaration for this layer.
        where: the configuration key, for errors.
    """
    if word is not None:
        names = declared(word, where=where)
        if len(names) != len(shape):
            raise ConfigError(
                f"{where}: {word} has {len(names)} axes, the layer returns {tuple(shape)}"
            )
        return names
    if len(shape) == 1:
        return VECTOR
    if sample_axis:
        return _sequence_first(shape, module, sample_axis)
    if _is_attention(shape, module, sizes, key, others):
        return ATTENTION
    fixed = by_type(module, len(shape) + 1)
    square = len(shape) == 3 and shape[0] == shape[1] and shape[0] in sizes.token_counts
    if isinstance(module, nn.Linear) and square and tuple(shape[:2]) not in sizes.map_sizes:
        return (
            f"has shape {tuple(shape)} per sample, which may be attention weights, heads last; "
            "declare it with model.axes={LAYER: channels_last} if they are maps"
        )
    if fixed is not None:
        return fixed
    if len(shape) == 2:
        return TOKENS
    if len(shape) != 3:
        return f"has shape {tuple(shape)} per sample: neither maps, tokens nor a vector"
    readings = by_shape(shape, sizes.image) if sizes.channels_last else {CHANNELS_FIRST}
    if len(readings) == 1:
        names = readings.pop()
        height, width = shape[1:] if names == CHANNELS_FIRST else shape[:2]
        kind = type(module).__name__
        grid = height * width in sizes.token_counts and "Dropout" not in kind and kind != "Softmax"
        known = (height, width) in sizes.map_sizes or grid
        if not sizes.token_counts or (known and height not in sizes.token_counts):
            return names
        word = "channels_first" if names == CHANNELS_FIRST else "channels_last"
        return (
            f"has shape {tuple(shape)} per sample, which may be attention weights or maps; declare "
            f"it with model.axes={{LAYER: attention}} or {word}"
        )
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


def _is_attention(
    shape: Sequence[int],
    module: nn.Module,
    sizes: ModelSizes,
    key: str | None,
    others: Sequence[Sequence[int]],
) -> bool:
    """Return whether an output is attention weights by head.

    That is torch's own second output, what a dropout returns that is all tokens by all tokens, and
    what stands beside the tokens that it has mixed.
    """
    if len(shape) != 3:
        return False
    kinds = {kind.__name__ for kind in type(module).__mro__}
    if "MultiheadAttention" in kinds and key == "1":
        return True
    _, queries, keys = shape
    if "Dropout" in type(module).__name__ and queries == keys:
        return queries in sizes.token_counts and (queries, keys) not in sizes.map_sizes
    mixed = any(len(other) == 2 and other[0] == queries for other in others)
    return mixed and queries in sizes.token_counts


def by_type(module: nn.Module, dimensions: int) -> tuple[str, ...] | None:
    """Return the axes of a module's output where its type fixes them."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    if dimensions == 2:
        return VECTOR
    last = {3: TOKENS, 4: CHANNELS_LAST}.get(dimensions)
    first = {3: TOKENS_LAST, 4: CHANNELS_FIRST}.get(dimensions)
    if "LayerNorm2d" in kinds:  # permutes around the norm (torchvision, timm)
        return first
    if getattr(module, "data_format", None) == "channels_first":  # ConvNeXt's, transformers'
        return first
    if kinds & set(_LAST):
        return last
    if kinds & set(_FIRST_MAPS) or kinds & set(_POOLS):
        return first
    return None


def by_shape(shape: Sequence[int], image: tuple[int, int]) -> set[tuple[str, ...]]:
    """Return the readings of one sample's shape that keep the aspect of the input."""
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
