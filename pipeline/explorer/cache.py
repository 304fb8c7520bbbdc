"""LRU cache: results are computed once and evicted when the cache is full."""

from collections.abc import Callable, Hashable
from threading import Condition
from typing import Any, TypeVar, cast

import cachetools
import numpy as np

R = TypeVar("R")


class LRUCache:
    """Results by key, up to a number of bytes; the least recently used are evicted first.

    Threads that request a result while it is computed wait for it.
    """

    def __init__(self, max_bytes: int) -> None:
        results = cachetools.LRUCache[Hashable, Any](max_bytes, getsizeof=_nbytes)
        cached = cachetools.cached(results, key=lambda key, _: key, condition=Condition())
        self._result = cached(lambda _, make: make())

    def get(self, key: Hashable, make: Callable[[], R]) -> R:
        """Return the result of `key`; compute it on a miss."""
        return cast("R", self._result(key, make))


def _nbytes(value: Any) -> int:
    """Return the bytes of a picture, an array, or the arrays of a dict or dataclass."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    parts = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return sum(map(_nbytes, parts.values()))
