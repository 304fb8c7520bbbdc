"""Axis inference: the names of an activation's axes, from the dummy batch.

In order of precedence: the configuration (`model.axes`); module types that fix the axes; shapes, as
spatial axes keep the aspect ratio of the input; sizes of other layers. A shape with two readings is
never guessed: if the model has no channels-last layer, its maps are channels first; otherwise the
layer must be declared. So must outputs that may be attention: of tokens by tokens, without the
channels of any map, and in a model with tokens those that have the size of no map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pipeline.capture.attention import PRODUCTS
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
from pipeline.capture.functions import FunctionCall
from pipeline.capture.trace import LayerCall
from pipeline.common.errors import ConfigError

_CHANNELS_LAST = {
    "Linear", "LayerNorm", "RMSNorm", "Embedding", "MultiheadAttention",
    "linear", "layer_norm", "rms_norm", "embedding",
}  # fmt: skip
"""Module types, and functions, that return the channels as the last axis."""
_CHANNELS_FIRST = {
    "_ConvNd", "_BatchNorm", "_InstanceNorm", "GroupNorm", "PixelShuffle", "Upsample", "Unfold",
    "_MaxPoolNd", "_AvgPoolNd", "_AdaptiveMaxPoolNd", "_AdaptiveAvgPoolNd", "conv2d",
    "conv_transpose2d", "batch_norm", "instance_norm", "group_norm", "pixel_shuffle", "interpolate",
    "unfold", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes known from the layers whose type fixes their axes.

    Attributes:
        image: height and width of the input.
        channels_last: whether some maps are channels last, so that others may be either.
        token_counts: numbers of tokens; empty for a model without tokens.
        widths: numbers of channels of these tokens.
        map_sizes: heights and widths of maps and of patch grids.
        flattened: (channels, height × width) of maps.
    """

    image: tuple[int, int]
    channels_last: bool = False
    token_counts: frozenset[int] = frozenset()
    widths: frozenset[int] = frozenset()
    map_sizes: frozenset[tuple[int, int]] = frozenset()
    flattened: frozenset[tuple[int, int]] = frozenset()


def model_sizes(
    calls: Sequence[LayerCall],
    modules: Mapping[str, nn.Module],
    image: tuple[int, int],
    tokens: Tokens,
) -> ModelSizes:
    """Return a model's sizes from its calls with the dummy batch.

    A Linear layer mixes tokens if it takes or returns as many values as there are tokens, for each
    of as many channels as tokens have.
    """
    counts = {height * width + (tokens.prefix or 0) for height, width in tokens.grids}
    maps, flattened, last = {image, (1, 1), *tokens.grids}, set[tuple[int, int]](), False
    sequences: set[tuple[int, int, nn.Module]] = set()
    for call in calls:
        tensor = call.outputs.get(None)
        if tensor is None or tensor.sample_axis() != 0:
            continue
        module, shape = modules[call.layer], tensor.shape
        names = by_type(module, len(shape))
        if names == TOKENS:
            sequences.add((shape[1], shape[2], module))
            if not isinstance(module, nn.Linear):
                counts.add(shape[1])
        elif names == CHANNELS_FIRST:
            maps.add((shape[2], shape[3]))
            flattened.add((shape[1], shape[2] * shape[3]))
        elif names == CHANNELS_LAST:
            last = True
            # A Linear may mix attention heads, a LayerNorm the tokens of each.
            if not isinstance(module, nn.Linear) and _same_aspect(shape[1:3], image):
                maps.add((shape[1], shape[2]))
    widths = {width for count, width, _ in sequences if count in counts}
    counts |= {
        count
        for count, width, module in sequences
        if count not in widths or counts.isdisjoint((width, getattr(module, "in_features", width)))
    }
    return ModelSizes(
        image=image,
        channels_last=last,
        token_counts=frozenset(counts),
        widths=frozenset(widths),
        map_sizes=frozenset(maps),
        flattened=frozenset(flattened),
    )


def axes_of(
    shape: Sequence[int],
    *,
    module: nn.Module,
    sizes: ModelSizes,
    key: str | None = None,
    output_shapes: Sequence[Sequence[int]] = (),
    sample_axis: int = 0,
    word: str | None = None,
    where: str = "model.axes",
) -> tuple[str, ...] | str:
    """Return the axis names of one sample's activation, or why they are unknown.

    Args:
        shape: sizes without the sample axis.
        key: which of the module's outputs it is; None for a single output.
        output_shapes: shapes of all outputs of the module, this one included.
        word: the layer's declaration in the configuration, at the key `where`.
    """
    if word is not None:
        names = declared(word, where=where)
        one_channel = len(shape) == 2 and names in (CHANNELS_FIRST, ATTENTION)
        if len(names) != len(shape) and not one_channel:
            raise ConfigError(
                f"{where}: {word} has {len(names)} axes, the layer returns shape {tuple(shape)}"
            )
        return names
    if len(shape) < 2:
        return VECTOR
    if sample_axis:
        return _sequence_first(shape, module, sample_axis)
    if _is_attention(shape, module, sizes, key, output_shapes):
        return ATTENTION
    fixed = by_type(module, len(shape) + 1)
    if fixed == CHANNELS_LAST and tuple(shape[:2]) not in sizes.map_sizes:
        square = shape[0] == shape[1] and shape[0] in sizes.token_counts
        if (square and isinstance(module, nn.Linear)) or not _same_aspect(shape[:2], sizes.image):
            if tuple(shape[1:]) in sizes.map_sizes and sizes.token_counts.isdisjoint(shape[1:]):
                return CHANNELS_FIRST  # a class that only has the name of another
            return _ambiguous(shape, "tokens of heads, attention weights or maps", "channels_last")
    if len(shape) == 2 and (fixed is None or isinstance(module, nn.Linear)):
        return _of_two_axes((shape[0], shape[1]), sizes, may_be_map=fixed is None)
    if fixed == TOKENS_LAST:
        # A Conv1d or BatchNorm1d may take the model's tokens for its channels.
        counts = {shape[0], getattr(module, "in_channels", shape[0])} & sizes.token_counts
        return TOKENS if counts and shape[1] in sizes.widths - sizes.token_counts else fixed
    if fixed is not None:
        return fixed
    if len(shape) != 3:
        return f"has shape {tuple(shape)} per sample: neither maps, tokens nor a vector"
    readings = by_shape(shape, sizes.image)
    permuted = shape[:2] in sizes.map_sizes and shape[1:] not in sizes.map_sizes
    if not sizes.channels_last and not (permuted and readings == {CHANNELS_LAST}):
        readings = {CHANNELS_FIRST}
    if len(readings) == 1:
        names = readings.pop()
        height, width = shape[1:] if names == CHANNELS_FIRST else shape[:2]
        call = module.function if isinstance(module, FunctionCall) else ""
        weighs, of_maps = _weighs(module), (shape[0], height * width) in sizes.flattened
        grid = height * width in sizes.token_counts and not weighs
        attention = {shape[1], shape[2]} <= sizes.token_counts and (call or weighs or not of_maps)
        is_map = (height, width) in sizes.map_sizes and not attention
        flat = any(count in (height, width) for _, count in sizes.flattened if count > 1)
        aspect = _same_aspect((height, width), sizes.image)
        plain = not sizes.token_counts and (aspect and not flat if call else aspect or not flat)
        known = plain or is_map or (grid and height not in sizes.token_counts)
        # Attention between channels has the size of a map by chance, but not its channels.
        weighs &= not (plain or of_maps or names == CHANNELS_LAST)
        if known and call not in PRODUCTS and not weighs:
            return names
        word = "channels_first" if names == CHANNELS_FIRST else "channels_last"
        return _ambiguous(shape, "attention weights or maps", "attention", word)
    return _ambiguous(shape, "channels first or last", "channels_first", "channels_last")


def _of_two_axes(
    shape: tuple[int, int], sizes: ModelSizes, *, may_be_map: bool
) -> tuple[str, ...] | str:
    """Return the axes of two sizes by those of other layers: tokens, or a map without channels."""
    first, last = shape
    if first in sizes.token_counts:
        return TOKENS
    is_map = may_be_map and shape in sizes.map_sizes
    flat, turned = shape in sizes.flattened, (last, first) in sizes.flattened
    if is_map and (flat or turned):
        return _ambiguous(shape, "a map or a flattened map", "channels_first", "tokens_last")
    if is_map:
        return CHANNELS_FIRST
    if (flat and not turned) or first in sizes.widths:
        return TOKENS_LAST
    positions = {count for _, count in sizes.flattened} - {1}
    if sizes.token_counts or first in positions or last not in positions:
        return TOKENS
    return _ambiguous(shape, "tokens or a flattened map", "tokens", "tokens_last")


def _ambiguous(shape: Sequence[int], readings: str, *words: str) -> str:
    return (
        f"has shape {tuple(shape)} per sample, which may be {readings}; declare it with "
        f"model.axes={{LAYER: {' or '.join(words)}}}"
    )


def _sequence_first(
    shape: Sequence[int], module: nn.Module, sample_axis: int
) -> tuple[str, ...] | str:
    """Return the axes of an output whose sample axis is not the first, or why they are unknown.

    Only `(token, sample, channel)` is inferred; other outputs must be declared.
    """
    if len(shape) == 2 and sample_axis == 1 and by_type(module, 3) in (TOKENS, None):
        return TOKENS
    words = [word for word, names in DECLARABLE.items() if len(names) == len(shape)]
    if not words:
        return f"has shape {tuple(shape)} per sample: neither maps, tokens nor a vector"
    return (
        f"keeps the samples on axis {sample_axis}, and its other axes {tuple(shape)} are unknown; "
        f"declare them with model.axes={{LAYER: {' or '.join(words)}}}"
    )


def _is_attention(
    shape: Sequence[int],
    module: nn.Module,
    sizes: ModelSizes,
    key: str | None,
    output_shapes: Sequence[Sequence[int]],
) -> bool:
    """Return whether an output is attention weights, by head or their mean.

    These are the second output of torch's MultiheadAttention (by default the mean), a softmax or
    dropout of all tokens by all tokens, and what is returned together with the tokens it mixed.
    """
    if key == "1" and "MultiheadAttention" in {kind.__name__ for kind in type(module).__mro__}:
        return True
    if len(shape) != 3:
        return False
    _, queries, keys = shape
    if not {queries, keys} <= sizes.token_counts or (queries, keys) in sizes.map_sizes:
        return False
    mixed = any(len(other) == 2 and other[0] == queries for other in output_shapes)
    return mixed or (_weighs(module) and queries == keys)


def _weighs(module: nn.Module) -> bool:
    kind = type(module).__name__
    return "Dropout" in kind or kind == "Softmax"


def by_type(module: nn.Module, dimensions: int) -> tuple[str, ...] | None:
    """Return the axes of a module's output if its type fixes them, else None."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    if isinstance(module, FunctionCall):
        kinds.add(module.function)
    if dimensions == 2:
        return VECTOR
    last = {3: TOKENS, 4: CHANNELS_LAST}.get(dimensions)
    first = {3: TOKENS_LAST, 4: CHANNELS_FIRST}.get(dimensions)
    norm_2d = any("Norm" in kind and kind.endswith("2d") for kind in kinds)  # permutes maps
    if norm_2d or getattr(module, "data_format", None) == "channels_first":  # ConvNeXt's
        return first
    if len(getattr(module, "normalized_shape", ())) > 1:  # a LayerNorm over channels and positions
        return None
    if kinds & _CHANNELS_FIRST:
        return first
    return last if kinds & _CHANNELS_LAST else None


def by_shape(shape: Sequence[int], image: tuple[int, int]) -> set[tuple[str, ...]]:
    """Return the readings of one sample's shape that keep the input's aspect ratio."""
    a, b, c = shape
    readings: set[tuple[str, ...]] = set()
    if _same_aspect((b, c), image):
        readings.add(CHANNELS_FIRST)
    if _same_aspect((a, b), image):
        readings.add(CHANNELS_LAST)
    return readings


def _same_aspect(size: Sequence[int], image: tuple[int, int]) -> bool:
    """Return whether a map can be the downscaled image.

    Padding and strides may round each side by one or two.
    """
    (height, width), (full_height, full_width) = size, image
    if full_height == full_width:
        return height == width
    stride = max(1.0, full_height / height)
    return abs(full_width / stride - width) <= 2
