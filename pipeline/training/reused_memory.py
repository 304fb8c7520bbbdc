"""Memory of a loader's batches."""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import numpy as np

from pipeline.common.arrays import Array

_LARGE = 4 * 2**20
_FREE_ARRAYS = 4


class ReusedMemory:
    """Memory of large arrays, reused when no array or tensor refers to it any more: the kernel
    clears new memory, which takes as long as filling it.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[Array]] = {}  # by size

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an uninitialized array."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < _LARGE:
            return np.empty(shape, dtype)
        free = self._free.setdefault(nbytes, deque(maxlen=_FREE_ARRAYS))
        memory = free.popleft() if free else np.empty(nbytes, np.uint8)
        content = np.asarray(memory.data)  # base of every view of it: the last one frees it
        weakref.finalize(content, free.append, memory).atexit = False
        return content.view(dtype).reshape(shape)
