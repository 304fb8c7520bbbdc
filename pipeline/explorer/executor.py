"""Thread pool beside the event loop, with a cache of rendered pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.common.machine import cores
from pipeline.explorer.cache import LRUCache

T = TypeVar("T")
_WAITING = 1000
_SECONDS = 60.0
_PICTURE_BYTES = 64 * 2**20


class Busy(Exception):
    """The server is overloaded."""


class Executor:
    """Runs work in a few threads and caches pictures by request."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max(2, cores()), "explorer")
        self._waiting = 0
        self.pictures: LRUCache[bytes] = LRUCache(_PICTURE_BYTES, len)

    async def do(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, run in one of the threads."""
        if self._waiting >= _WAITING:
            raise Busy("too many requests; try again later")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await asyncio.wait_for(loop.run_in_executor(self._pool, work), _SECONDS)
        except TimeoutError:
            raise Busy(f"the request took more than {_SECONDS:.0f} seconds") from None
        finally:
            self._waiting -= 1

    async def drawn(self, key: Hashable, draw: Callable[[], bytes]) -> bytes:
        """Return a picture from the cache; render it on a miss."""
        return await self.do(lambda: self.pictures.get(key, draw))

    def close(self) -> None:
        """Shut the threads down."""
        self._pool.shutdown(wait=False, cancel_futures=True)
