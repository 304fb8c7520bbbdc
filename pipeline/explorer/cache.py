"""Kept: results that are made once and kept until room is needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Kept(Generic[T]):
    """Results by key, up to a number of bytes; those asked for longest ago go first.

    Threads that ask for one that is being made wait for it.
    """

    def __init__(self, most: int, size: Callable[[T], int]) -> None:
        self._most = most
        self._size: Callable[[Any], int] = size
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], R]) -> R:
        """Return the result of `key`, made now if need be."""
        with self._lock:
            known = self._found.get(key)
            if known is not None:
                self._found.move_to_end(key)
            else:
                mine: Future[R] = Future()
                self._found[key] = mine
        if known is not None:
            result: R = known.result()
            return result
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                self._found.pop(key, None)
            mine.set_exception(error)
            raise
        mine.set_result(made)
        self._make_room(self._size(made))
        return made

    def _make_room(self, added: int) -> None:
        with self._lock:
            self._bytes += added
            for key, future in list(self._found.items()):
                if self._bytes <= self._most:
                    return
                if future.done():
                    del self._found[key]
                    self._bytes -= self._size(future.result())
