"""Arrays that are used again: fresh memory costs as much as reading into it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from pipeline.foundation.arrays import Array

_MOST = 6
_OURS = 3  # references: the list's, the loop's, the argument's


class ArrayPool:
    """Gives arrays, and takes them back by itself once nothing refers to them or a view of them."""

    def __init__(self) -> None:
        """Start without any."""
        self._arrays: list[Array] = []

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of any content, which nobody else uses."""
        for array in self._arrays:
            if (
                array.shape == shape and array.dtype == dtype
                and sys.getrefcount(array) == _OURS
            ):  # fmt: skip
                return array
        fresh: Array = np.empty(shape, dtype)
        self._arrays = [fresh, *self._arrays[: _MOST - 1]]
        return fresh
