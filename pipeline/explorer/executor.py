"""The workshop: threads beside the event loop, and the pictures that they have drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.common.machine import cores
from pipeline.explorer.cache import Kept

T = TypeVar("T")
_WAITING = 1000
_SECONDS = 60.0
_PICTURE_BYTES = 64 * 2**20


class Busy(Exception):
    """More is asked for than can be drawn in time."""


class Workshop:
    """Does work in a few threads; results are kept by what was asked for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max(2, cores()), "explorer")
        self._waiting = 0
        self.pictures: Kept[bytes] = Kept(_PICTURE_BYTES, len)

    async def do(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, from one of the threads."""
        if self._waiting >= _WAITING:
            raise Busy("too many requests at once")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await asyncio.wait_for(loop.run_in_executor(self._pool, work), _SECONDS)
        except TimeoutError:
            raise Busy(f"it took more than {_SECONDS:.0f} seconds") from None
        finally:
            self._waiting -= 1

    async def drawn(self, key: Hashable, draw: Callable[[], bytes]) -> bytes:
        """Return a picture, drawn now if it is not kept."""
        return await self.do(lambda: self.pictures.get(key, draw))

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
