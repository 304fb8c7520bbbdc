"""Ranges that layers of one name share over archives, and the differences between archives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.common.arrays import Array
from pipeline.renderers.mean_map import OverChannels, over_channels
from pipeline.rendering.drawing.colormaps import limits, symmetric
from pipeline.rendering.views import LayerView, SampleView


class Ranges:
    """Ranges of values that layers of one name share over archives.

    Attributes:
        of_layer: name → the range of the mean maps, or of the vectors.
        of_difference: name → the range of all differences from the first, zero in its middle.
        signed: names of layers with negative values.
    """

    def __init__(self, views: Sequence[SampleView]) -> None:
        """Take one sample as every archive has it, the first archive's first."""
        first = {layer.name: layer for layer in views[0].layers}
        shown: dict[str, list[Array]] = {}
        differences: dict[str, list[Array]] = {}
        self.signed = set()
        for view in views:
            for layer in view.layers:
                shown.setdefault(layer.name, []).append(_shown(layer).ravel())
                if layer.signed:
                    self.signed.add(layer.name)
                change = difference(layer, first.get(layer.name))
                if change is not None:
                    differences.setdefault(layer.name, []).append(change.ravel())
        self.of_layer = {name: limits(np.concatenate(all_)) for name, all_ in shown.items()}
        self.of_difference = {
            name: symmetric(limits(np.concatenate(all_))) for name, all_ in differences.items()
        }


def _shown(layer: LayerView) -> Array:
    """Return the mean map `(1, height, width)`, or a vector `(channel, 1, 1)`."""
    if layer.vector:
        return layer.maps
    key = ("over channels", OverChannels.MEAN)
    mean: Array = layer.memoize(key, lambda: over_channels(layer))
    return mean[None]


def difference(layer: LayerView, first: LayerView | None) -> Array | None:
    """Return the mean map (or vector) minus the first archive's; None where the sizes differ.

    Returns:
        float64 `(1, height, width)`, of a vector `(channel, 1, 1)`.
    """
    if first is None or first.vector != layer.vector:
        return None
    values, others = _shown(layer).astype(np.float64), _shown(first).astype(np.float64)
    if values.shape != others.shape:
        return None
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        return np.asarray(values - others)
