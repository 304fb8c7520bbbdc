"""Normalization of stored activations by the archive's statistics."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from pipeline.common.arrays import Array

_CONSTANT = 1e-6  # std / |mean| of a channel that differs by rounding only
Normalize = Literal["none", "mean", "standard", "rms"]
"""See `ActivationLoader`.

Source: rms = √(Σ count · (mean² + std²) / Σ count) over channels, the root mean square of all
values. Constant channels are not divided.
"""


class Scaling(NamedTuple):
    """(x - offset) / scale; both are `(channel,)` float64."""

    offset: Array
    scale: Array

    def __call__(self, values: Array, channel_axis: int) -> Array:
        """Return float32 values, computed in float64; float32 ones are overwritten."""
        shape = [1] * values.ndim
        shape[channel_axis] = -1
        out = values if values.dtype == np.float32 else values.astype(np.float32)
        np.subtract(out, self.offset.reshape(shape), out=out, casting="same_kind")
        np.divide(out, self.scale.reshape(shape), out=out, casting="same_kind")
        return out


def scaling(normalize: Normalize, statistics: Mapping[str, Array]) -> Scaling:
    """Return the scaling of a layer from `StoredLayer.statistics`."""
    count = statistics["count"]
    mean, std = (np.where(count > 0, statistics[name], 0) for name in ("mean", "std"))
    if normalize == "rms":
        square = (count * (mean**2 + std**2)).sum() / max(1, count.sum())
        return Scaling(np.zeros_like(mean), np.full_like(mean, np.sqrt(square) or 1))
    divided = (normalize == "standard") & (std > _CONSTANT * np.abs(mean))
    return Scaling(mean, np.where(divided, std, 1))
