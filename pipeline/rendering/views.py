"""Views: a stored sample and its layers, ready to draw."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.rendering.drawing.text_and_resize import fit, size_of
from pipeline.rendering.drawing.tile_layout import Tile

T = TypeVar("T")
BLANK = 240
"""Grey level of the placeholder for an input that is not stored."""


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One layer of one sample, ready to draw.

    Attributes:
        name, alias: of the layer.
        maps: `(channel, height, width)` float32; tokens are placed in their grid, a vector is
            `(channel, 1, 1)`, attention weights are `(head, query, key)`.
        vector: whether each channel has a single value (no positions, or one).
        statistics: the layer's statistics over the whole dataset, `(channel,)` each: count mean std
            min max zero_fraction nonfinite_count; may be empty.
        axes: names of the stored axes.
        grid, prefix_tokens, class_token, reduction: as stored; see `LayerEntry`.
    """

    name: str
    alias: str
    maps: Array
    vector: bool
    statistics: Mapping[str, Array] = field(default_factory=dict)
    axes: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    class_token: bool = False
    reduction: str = ""

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.maps)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `maps`."""
        shape: tuple[int, ...] = self.maps.shape
        return shape

    @property
    def signed(self) -> bool:
        """Whether the layer has negative values in the dataset (in this sample if unknown)."""
        lowest = self.statistics.get("min", self.maps)
        return bool(np.nanmin(lowest, initial=0) < 0)

    _known: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def memoize(self, key: object, make: Callable[[], T]) -> T:
        """Return the cached value of `key`, computed by `make` on first use."""
        if key not in self._known:
            self._known[key] = make()
        value: T = self._known[key]
        return value


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """One stored sample.

    Attributes:
        index: row in the archive.
        id, label_name: of the sample.
        model: name of the model, for captions.
        image: the model's input, uint8 `(height, width, rgb)`; blank if it is not stored.
        layers: in execution order.
        has_input: whether the input is stored.
    """

    index: int
    id: str
    label_name: str
    model: str
    image: Array
    layers: Sequence[LayerView]
    has_input: bool = True


def as_layer_view(
    name: str, alias: str, axes: Sequence[str], activation: Array, **fields: Any
) -> LayerView:
    """Return a stored activation of one sample as maps; tokens without a grid form a strip.

    Args:
        name, alias, fields: attributes of the view. The prefix tokens are not drawn.
        axes: names of the activation's axes.
        activation: of one sample.
    """
    order = tuple(axes)
    channels = "head" if "head" in order else "channel"
    maps = np.moveaxis(np.asarray(activation, dtype=np.float32), order.index(channels), 0)
    if len(order) == 1:
        maps = maps.reshape(-1, 1, 1)
    elif "token" in order:
        prefix = fields.get("prefix_tokens", 0)
        height, width = fields.get("grid") or (1, maps.shape[1] - prefix)
        maps = maps[:, prefix:].reshape(len(maps), height, width)
    vector = maps.shape[1:] == (1, 1)
    maps = np.ascontiguousarray(maps)
    return LayerView(name=name, alias=alias, axes=order, maps=maps, vector=vector, **fields)


def layer_view(
    layer: StoredLayer, row: int, statistics: Mapping[str, Array] | None = None
) -> LayerView:
    """Read one layer of one sample."""
    entry = layer.entry
    copied = ("grid", "prefix_tokens", "class_token", "reduction")
    fields = {name: getattr(entry, name) for name in copied}
    return as_layer_view(
        layer.name, layer.alias, entry.axes, layer[row], statistics=statistics or {}, **fields
    )


def sample_view(
    archive: Archive,
    sample: StoredSample | int | str,
    statistics: Mapping[str, Mapping[str, Array]] | None = None,
    layers: Iterable[StoredLayer] | None = None,
) -> SampleView:
    """Read one sample of the archive, every layer as maps.

    Args:
        archive: an open archive.
        sample: one of its samples, or the row or id of one.
        statistics: layer → statistics over the dataset, for renderers that use them; None reads
            them.
        layers: layers of the archive; None selects all.
    """
    sample = archive.samples[sample] if isinstance(sample, (int, str)) else sample
    layers = [*(archive.layers.values() if layers is None else layers)]
    if statistics is None:
        statistics = {layer.name: layer.statistics for layer in layers}
    names = [archive.manifest.input_rows, *(schema.activation_rows(layer.name) for layer in layers)]
    archive = archive.fetched([(name, [sample.index]) for name in filter(None, names)])
    return SampleView(
        index=sample.index,
        id=sample.id,
        label_name=sample.label_name,
        model=archive.manifest.model_title,
        image=input_image(archive, sample.index),
        has_input=archive.has_inputs,
        layers=[
            layer_view(archive.layers[layer.name], sample.index, statistics.get(layer.name))
            for layer in layers
        ],
    )


def input_image(archive: Archive, row: int) -> Array:
    """Return the model's input for a sample, or a blank of the same size if it is not stored."""
    if archive.has_inputs:
        return archive.image(row)
    return np.full((*archive.manifest.image_shape[1:], 3), BLANK, np.uint8)


def input_tile(sample: SampleView, cell: int, *, title: str = "input", note: str = "") -> Tile:
    """Return the model's input with its longer side at `cell` pixels; blank if it is not stored.

    The default note is the input's size.
    """
    note = note or (size_of(sample.image) if sample.has_input else "input not stored")
    return Tile(pixels=fit(sample.image, cell), title=title, note=note)


def caption(sample: SampleView, *parts: str) -> str:
    """Return a picture's caption: layer or kind, sample and label, model."""
    label = f" ({sample.label_name})" if sample.label_name else ""
    return " · ".join(part for part in (*parts, f"{sample.id}{label}", sample.model) if part)
