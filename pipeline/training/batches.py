"""Batch of a loader."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor


class LoadedBatch(NamedTuple):
    """A batch, which owns its memory.

    Attributes:
        activations: layer → `(sample, …)`; with positions or tokens `(sample · vector, channel)`.
        labels: `(sample,)` or `(sample · vector,)` int64; -1: unlabelled.
        rows: rows of the samples in the archive, with the shape of `labels`.
        positions: layer → index of each vector in the layer's map or grid, row by row, or in its
            tokens without prefix tokens, with the shape of `labels`; for prefix tokens negative,
            from `-prefix_tokens` (the first) to -1. For archives made with `reduction=positions`
            also for whole activations, `(sample, token)`. Empty in all other cases.
    """

    activations: dict[str, Tensor]
    labels: Tensor
    rows: Tensor
    positions: dict[str, Tensor]

    @property
    def entropy(self) -> float:
        """Entropy of the vectors' samples, in nats; its exponential is their effective number."""
        counts = np.unique(self.rows, return_counts=True)[1]
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())
