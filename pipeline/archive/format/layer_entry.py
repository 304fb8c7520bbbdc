"""One layer of an archive: names, axes, types; layers by their names."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from pipeline.archive.format import schema
from pipeline.common.configured import Natural
from pipeline.common.errors import LayerError, suggestion
from pipeline.common.several import several


@dataclass(frozen=True)
class RowDataset:
    """A dataset that has a row per sample.

    Attributes:
        shape, dtype, axes: of a row; of a JPEG file, those of its pixels.
        codec: compression, or `none`.
        checked: whether every row has a checksum; otherwise the dataset has a digest.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    codec: str = "none"
    checked: bool = False


ALL_POSITIONS = "all"
"""`LayerEntry.positions` of a layer without prefix tokens."""


@dataclass(frozen=True, kw_only=True)
class LayerEntry:
    """One layer as the archive stores it, after the reduction.

    Attributes:
        name: name in the archive.
        alias: display name.
        module_type: class name of the module.
        call: index of the call in one forward pass, 0-based.
        axes, shape: names and sizes of the axes after `sample`.
        dtype: stored type.
        grid: height and width of the token grid; None without tokens or if the grid is unknown. For
            attention weights, of the keys, and of the queries if there are as many.
        prefix_tokens: number of tokens before the grid.
        class_token: whether the first of them is a class token.
        source_dtype: type of the layer's output.
        reduction: applied reduction, or `none`.
        codec: compression of the stored values, or `none`.
        positions: positions that spatial reductions and statistics cover: `all`, those of the
            `grid` (with the number of omitted prefix tokens), or the `class token`.
        drawn: seed and original number of positions, if positions were sampled.
    """

    name: str
    alias: str
    module_type: str
    call: int
    axes: tuple[str, ...]
    shape: tuple[Natural, ...]
    dtype: Annotated[str, Field(pattern=r"^(float32|float16|bfloat16)$")]
    source_dtype: str
    reduction: str
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    class_token: bool = False
    codec: str = "none"
    positions: str = ALL_POSITIONS
    drawn: tuple[int, int] | None = None

    def check(self) -> None:
        """Raise ValueError if axes, shape and positions do not fit together."""
        if len(self.axes) != len(self.shape) or not {schema.CHANNEL, schema.HEAD} & {*self.axes}:
            raise ValueError(f"layer {self.name!r} has axes {self.axes} and shape {self.shape}")
        if self.drawn and "token" not in self.axes:
            raise ValueError(f"layer {self.name!r} samples positions, but has no tokens")

    @property
    def channel_axis(self) -> int:
        """Index of the channel or head axis; `sample` is axis 0."""
        return 1 + self.axes.index(schema.HEAD if schema.HEAD in self.axes else schema.CHANNEL)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis - 1]

    @property
    def vector(self) -> bool:
        """Whether the layer has channels only, no positions."""
        return len(self.axes) == 1

    @property
    def prefix_positions(self) -> int:
        """Number of positions before the grid's; 0 for attention weights, whose positions are pairs
        of tokens.
        """
        return self.prefix_tokens if "token" in self.axes else 0

    @property
    def positions_per_sample(self) -> int:
        """Number of positions that statistics cover, 1 of a vector."""
        channel = self.channel_axis - 1
        return math.prod(self.shape[:channel] + self.shape[channel + 1 :]) - self.prefix_positions

    @property
    def spatial_shape(self) -> tuple[int, int] | None:
        """Height and width of the positions if they tile the image in order.

        Tokens without a known grid form one row; None for vectors, attention weights and sampled
        positions.
        """
        size = dict(zip(self.axes, self.shape, strict=True))
        if {"height", "width"} <= size.keys():
            return size["height"], size["width"]
        if "token" in size and not self.drawn:
            return self.grid or (1, size["token"] - self.prefix_tokens)
        return None

    @property
    def row_datasets(self) -> dict[str, RowDataset]:
        """HDF5 path of each of the layer's datasets with a row per sample, activations first."""
        activation = RowDataset(self.shape, self.dtype, self.axes, self.codec, checked=True)
        rows = {schema.activation_rows(self.name): activation}
        if self.drawn:
            positions = (self.shape[self.axes.index("token")],)
            rows[schema.position_rows(self.name)] = RowDataset(positions, "int64", ("token",))
        for figure in schema.SAMPLE_STATISTICS if not self.vector else ():
            path = schema.statistic(self.name, figure)
            rows[path] = RowDataset((self.channels,), "float32", (schema.CHANNEL,))
        return rows

    def facts(self, samples: int) -> dict[str, Any]:
        """Return what users want to know of the layer of an archive, as values for JSON."""
        names = ("name", "alias", "dtype", "reduction", "positions")
        return {
            **{name: getattr(self, name) for name in names},
            "type": self.module_type,
            "axes": [schema.SAMPLE, *self.axes],
            "shape": [samples, *self.shape],
        }

    @property
    def sample_bytes(self) -> int:
        """Uncompressed bytes of one sample's activation."""
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 2)


def layer_named(layers: Sequence[LayerEntry], name: str, *, where: str) -> LayerEntry:
    """Return a layer by name or alias; LayerError, after `where`, lists the nearest names."""
    for layer in layers:
        if name in (layer.name, layer.alias):
            return layer
    raise _unknown(layers, name, where)


def layers_matching(
    layers: Sequence[LayerEntry], patterns: str | Sequence[str], *, where: str
) -> set[str]:
    """Return the names of the layers that match names, aliases or globs; of all without any."""
    several_patterns = [] if patterns is None else several(patterns)
    selected = set() if several_patterns else {layer.name for layer in layers}
    for pattern in several_patterns:
        matches = {
            layer.name
            for layer in layers
            if pattern in (names := (layer.name, layer.alias))
            or fnmatch.filter(names, str(pattern))
        }
        if not matches:
            raise _unknown(layers, pattern, where)
        selected |= matches
    return selected


def _unknown(layers: Sequence[LayerEntry], name: str, where: str) -> LayerError:
    names = [text for layer in layers for text in (layer.name, layer.alias)]
    return LayerError(f"{where}: no layer {name!r}; {suggestion(name, names)}")
