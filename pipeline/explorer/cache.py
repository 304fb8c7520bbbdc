"""LRU cache: results are computed once and evicted when the cache is full."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")


class LRUCache(Generic[T]):
    """Results by key, up to a number of bytes; the least recently used are evicted first.

    Threads that request a result while it is computed wait for it.
    """

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        self._max_bytes = max_bytes
        self._size: Callable[[Any], int] = size
        self._lock = threading.Lock()
        self._futures: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], R]) -> R:
        """Return the result of `key`; compute it on a miss."""
        with self._lock:
            known = self._futures.get(key)
            if known is not None:
                self._futures.move_to_end(key)
            else:
                own: Future[R] = Future()
                self._futures[key] = own
        if known is not None:
            return cast("R", known.result())
        try:
            result = make()
        except BaseException as error:
            with self._lock:
                self._futures.pop(key, None)
            own.set_exception(error)
            raise
        own.set_result(result)
        self._evict(self._size(result))
        return result

    def _evict(self, added: int) -> None:
        with self._lock:
            self._bytes += added
            for key, future in list(self._futures.items()):
                if self._bytes <= self._max_bytes:
                    return
                if future.done():
                    del self._futures[key]
                    self._bytes -= self._size(future.result())
