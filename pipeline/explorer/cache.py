"""LRU cache: results are computed once and evicted when the cache is full."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar, cast

import numpy as np

R = TypeVar("R")


class LRUCache:
    """Results by key, up to a number of bytes; the least recently used are evicted first.

    Threads that request a result while it is computed wait for it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._futures: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], R]) -> R:
        """Return the result of `key`; compute it on a miss."""
        with self._lock:
            missing = key not in self._futures
            future = self._futures.setdefault(key, Future())
            self._futures.move_to_end(key)
        if missing:
            try:
                future.set_result(make())
            except Exception as error:
                with self._lock:
                    del self._futures[key]
                future.set_exception(error)
                raise
            self._evict(_nbytes(future.result()))
        return cast("R", future.result())

    def _evict(self, added: int) -> None:
        with self._lock:
            self._bytes += added
            for key, future in list(self._futures.items()):
                if self._bytes <= self._max_bytes:
                    return
                if future.done():
                    del self._futures[key]
                    self._bytes -= _nbytes(future.result())


def _nbytes(value: Any) -> int:
    """Return the bytes of a picture, an array, or the arrays of a dict or dataclass."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, np.ndarray):
        return value.nbytes
    parts = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return sum(map(_nbytes, parts.values()))
