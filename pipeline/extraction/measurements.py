"""Measurements: statistics and rounding errors of a batch's layers, and what they must not be.

On a GPU they are computed and copied without waiting, as are the activations: one wait per batch.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.statistics import Statistics
from pipeline.common.arrays import Array
from pipeline.common.errors import LayerError
from pipeline.extraction import rounding, statistics
from pipeline.extraction.buffers import Buffers
from pipeline.extraction.settings import Extraction


class Measurements:
    """Measurements of one batch; `finish` fills `statistics` and `rounding`.

    Attributes:
        statistics: layer name → statistics of the samples.
        rounding: layer name → largest relative error of the stored type; empty for float32.
    """

    def __init__(self, config: Extraction, buffers: Buffers, start: int, good: Array) -> None:
        """Take the batch's first row, and a boolean mask of its usable samples."""
        self.statistics: dict[str, Statistics] = {}
        self.rounding: dict[str, float] = {}
        self._config = config
        self._buffers = buffers
        self._start = start
        self._good = good
        self._stored: torch.dtype = getattr(torch, config.storage.dtype)
        self._figures: dict[str, Callable[[], Statistics]] = {}
        self._casts: dict[str, Callable[[], tuple[float, float]]] = {}

    def start(self, entry: LayerEntry, activation: Tensor) -> None:
        """Measure a layer's activation, float32 `sample` followed by the entry's axes."""
        name = entry.name
        values, channel_axis, prefix = statistics.arguments(activation, entry)
        if _deferred(activation):
            packed = statistics.on_gpu(values, channel_axis, prefix)
            positions = values.numel() // max(1, packed[:, 0].numel())
            host = self._buffers.keep(f"{name}/statistics", packed, packed.dtype).numpy()
            self._figures[name] = lambda: statistics.unpacked(host, positions)
        else:
            figures = statistics.of_batch(values, channel_axis, prefix)
            self._figures[name] = lambda: figures
        if self._stored is not torch.float32 and self._good.any():
            exact = activation
            if not self._good.all():
                exact = activation[torch.from_numpy(self._good)]
            self._casts[name] = self._cast(name, exact, prefix is None)

    def _cast(self, name: str, exact: Tensor, counted: bool) -> Callable[[], tuple[float, float]]:
        """Return a function for the relative error and the largest magnitude.

        The magnitude may be 0 if statistics count all values.
        """
        if _deferred(exact):
            pair = rounding.on_gpu(exact, self._stored)[None]
            host = self._buffers.keep(f"{name}/rounding", pair, pair.dtype)
            return lambda: (rounding.at_bound(float(host[0, 0]), self._stored), float(host[0, 1]))
        largest = 0.0 if counted else float(exact.nan_to_num(0, 0, 0).abs().max())
        error = rounding.largest_relative_error(exact, self._stored)
        return lambda: (error, largest)

    def finish(self) -> None:
        """Fill `statistics` and `rounding`, once all copies have arrived.

        Raises:
            LayerError: when a value overflows the stored type, or a value is NaN or infinite and
                `on_nonfinite` is `raise`.
        """
        for name, compute in self._figures.items():
            self.statistics[name] = compute()
            if self._config.on_nonfinite == "raise":
                self._check_finite(name)
        for name, compute_cast in self._casts.items():
            self.rounding[name], largest = compute_cast()
            self._check_range(name, largest)

    def _check_finite(self, name: str) -> None:
        bad = np.where(self._good, self.statistics[name].nonfinite.sum(axis=1), 0)
        if bad.any():
            row = int(np.argmax(bad > 0))
            raise LayerError(
                f"layers: {name} returned {int(bad[row])} NaN or infinite values for "
                f"sample {self._start + row}"
            )

    def _check_range(self, name: str, largest: float) -> None:
        limit, figures = torch.finfo(self._stored).max, self.statistics[name]
        high, low = figures.max[self._good].max(), figures.min[self._good].min()
        largest = max(largest, float(high), -float(low))
        if largest > limit:
            raise LayerError(
                f"storage.dtype: {name} reaches {largest:.6g}, "
                f"but {self._config.storage.dtype} ends at {limit:.6g}; use storage.dtype=float32"
            )


def _deferred(values: Tensor) -> bool:
    return values.device.type == "cuda"
