"""Bytes of an object by offset, read in ranges on many threads.

Tables are read through pages, which are kept; rows are read exactly, with small gaps.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np

from pipeline.archive.format.file_bytes import Extent, FileBytes
from pipeline.common.arrays import Array
from pipeline.common.errors import ArchiveError
from pipeline.common.object_path import ObjectPath
from pipeline.common.object_store import TAIL, get_range, get_tail
from pipeline.common.places import Place

_REQUESTS = 32
_PART = 8 * 2**20
"""Largest range of one request."""
_GAP = 64 * 2**10
_EXCESS = 0.1
"""Bytes of gaps that are read too, as a fraction of the requested bytes."""
_PAGE = TAIL
_PAGES = 64


class Ranges:
    """Ranges of an object in memory, sorted by offset."""

    mapped = None

    def __init__(self, parts: Sequence[tuple[int, Array]]) -> None:
        self._starts = [start for start, _ in parts]
        self._parts = [content for _, content in parts]

    def read(self, offset: int, length: int) -> Array:
        """See `FileBytes.read`."""
        if not length:
            return np.empty(0, np.uint8)
        number = bisect_right(self._starts, offset) - 1
        first = offset - self._starts[number]
        content = self._parts[number][first : first + length]
        if len(content) == length:
            return content
        pieces = [content]
        while length > sum(map(len, pieces)):  # the range continues in the next part
            number += 1
            pieces.append(self._parts[number][: length - sum(map(len, pieces))])
        return np.concatenate(pieces)

    def read_into(self, out: Array, offset: int) -> None:
        """See `FileBytes.read_into`."""
        content = out.reshape(-1).view(np.uint8)
        content[:] = self.read(offset, len(content))

    def fetch(self, _: Sequence[Extent]) -> Ranges:
        """Return these ranges."""
        return self


class ObjectBytes:
    """An object for thread-safe reads at any offset; see `FileBytes`."""

    mapped = None

    def __init__(self, path: ObjectPath) -> None:
        """Read the object's size and end.

        Raises:
            FileNotFoundError, PermissionError, StoreError: see `object_store.request`.
        """
        self._path = path
        self.size, tail = get_tail(path, TAIL)
        self._tail = np.frombuffer(tail, np.uint8)
        self._pages: OrderedDict[int, Array] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> Array:
        """See `FileBytes.read`; small ranges are kept."""
        if offset + length > self.size:
            raise OSError("unexpected end of file")
        in_tail = offset - (self.size - len(self._tail))
        if in_tail >= 0:
            return self._tail[in_tail : in_tail + length]
        if length > _PAGE:
            return self.fetch([(offset, length)]).read(offset, length)
        pages = range(offset // _PAGE, -(-(offset + length) // _PAGE))
        with self._lock:
            content = np.concatenate([np.empty(0, np.uint8), *map(self._page, pages)])
        first = offset % _PAGE
        return content[first : first + length]

    def _page(self, number: int) -> Array:
        page = self._pages.pop(number, None)
        if page is None:
            stop = min((number + 1) * _PAGE, self.size)
            page = self._range((number * _PAGE, stop))[1]
            if len(self._pages) >= _PAGES:
                self._pages.popitem(last=False)
        self._pages[number] = page
        return page

    def read_into(self, out: Array, offset: int) -> None:
        """See `FileBytes.read_into`."""
        self.fetch([(offset, out.nbytes)]).read_into(out, offset)

    def fetch(self, extents: Sequence[Extent]) -> Ranges:
        """Read ranges concurrently, small gaps included.

        Raises:
            FileNotFoundError, PermissionError, StoreError: see `object_store.request`.
        """
        parts = planned(extents)
        if len(parts) < 2:
            return Ranges([self._range(part) for part in parts])
        return Ranges(list(_threads().map(self._range, parts)))

    def _range(self, part: tuple[int, int]) -> tuple[int, Array]:
        try:
            return part[0], np.frombuffer(get_range(self._path, *part), np.uint8)
        except OSError as error:
            raise ArchiveError(f"{self._path}: {error.strerror}") from None


def open_bytes(path: Place) -> FileBytes | ObjectBytes:
    """Open a file or an object.

    Raises:
        OSError: when it cannot be opened.
        StoreError: when the store cannot be reached.
    """
    return ObjectBytes(path) if isinstance(path, ObjectPath) else FileBytes(path)


def planned(extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """Return the start and stop of each request for some ranges.

    Gaps are read too, smallest first, while they are at most `_GAP` each and `_EXCESS` of the
    requested bytes together. Long ranges are split into equal parts.

    >>> planned([(0, 100), (105, 100), (200_000, 50), (100, 2)])
    [(0, 205), (200000, 200050)]
    """
    ordered = np.array(sorted(extents), np.int64).reshape(-1, 2)
    starts, stops = ordered[:, 0], np.maximum.accumulate(ordered.sum(axis=1))
    gaps = np.maximum(starts[1:] - stops[:-1], 0)
    smallest = np.argsort(gaps, kind="stable")
    allowed = min(_EXCESS, 1) * (stops - starts).clip(0).sum()
    joined = np.zeros(len(gaps), bool)
    joined[smallest] = (np.cumsum(gaps[smallest]) <= allowed) & (gaps[smallest] <= _GAP)
    first = np.concatenate([[True], ~joined])[: len(starts)]
    last = np.concatenate([~joined, [True]])[: len(starts)]
    parts = []
    for start, stop in zip(starts[first].tolist(), stops[last].tolist(), strict=True):
        count = max(1, -(-(stop - start) // _PART))
        edges = [start + (stop - start) * i // count for i in range(count + 1)]
        parts += [(a, b) for a, b in pairwise(edges) if b > a]
    return parts


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_REQUESTS, thread_name_prefix="object-store")


os.register_at_fork(after_in_child=_threads.cache_clear)
