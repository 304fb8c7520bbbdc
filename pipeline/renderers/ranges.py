"""Ranges shared by layers of the same name, and differences between archives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.common.arrays import Array
from pipeline.renderers.mean_map import OverChannels, over_channels
from pipeline.rendering.drawing.colormaps import limits, symmetric
from pipeline.rendering.views import LayerView, SampleView


class Ranges:
    """Value ranges shared by layers of the same name in several archives.

    Attributes:
        of_layer: name → range of the mean maps or vectors.
        of_difference: name → range of all differences from the first archive, symmetric around 0.
        signed: names of layers with negative values.
    """

    def __init__(self, views: Sequence[SampleView]) -> None:
        """Compute the ranges of one sample's views, one per archive, the first archive's first."""
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
    """Return the mean map (or vector) minus the first archive's; None if the sizes differ.

    Returns:
        float64 `(1, height, width)`, or `(channel, 1, 1)` for a vector.
    """
    if first is None or first.vector != layer.vector:
        return None
    values, first_values = _shown(layer).astype(np.float64), _shown(first).astype(np.float64)
    if values.shape != first_values.shape:
        return None
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        return np.asarray(values - first_values)
