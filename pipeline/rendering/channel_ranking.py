"""Channel ranking: channels of a layer by strength, in one sample or over the dataset."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError
from pipeline.rendering.views import LayerView

Select = Literal["first", "mean", "variance", "max"]
Basis = Literal["sample", "dataset"]


def check_chosen(chosen: Sequence[int], channels: Mapping[str, int]) -> None:
    """Raise ConfigError if a layer (layer → number of channels) lacks a chosen channel."""
    largest = max(chosen, default=-1)
    for layer, count in channels.items():
        if largest >= count:
            raise ConfigError(
                f"channels: no channel {largest} in layer {layer}; use 0 to {count - 1}"
            )


def rank_channels(layer: LayerView, by: Select, over: Basis) -> Array:
    """Return all channel numbers, strongest first, ties by number; channels without a finite value
    come last.
    """
    if by == "first":
        return np.arange(len(layer.maps))
    if over == "dataset" and layer.statistics:
        strength = np.square(layer.statistics["std"])
        strength = strength if by == "variance" else layer.statistics[by]
    else:
        values = np.ma.masked_invalid(layer.maps.reshape(layer.channels, -1).astype(np.float64))
        figure = "var" if by == "variance" else by
        strength = getattr(values, figure)(axis=1).filled(np.nan)
    return np.argsort(-np.nan_to_num(strength, nan=-np.inf, neginf=-np.inf), kind="stable")
