"""Bytes of an object by offset, read in ranges on many threads.

Tables are read through pages, which are kept; rows are read exactly, with small gaps. Both may be
cached on disk if the object's digest is known: then rows are read in whole blocks.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256

import numpy as np

from pipeline.archive.format.file_bytes import Extent, FileBytes
from pipeline.common.arrays import Array
from pipeline.common.disk_cache import DiskCache, disk_cache, prefix_of
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
_BLOCK = 2**20
"""Bytes of an entry of the cache on disk."""


class Ranges:
    """Ranges of an object in memory, sorted by offset."""

    mapped = None

    def __init__(self, parts: Sequence[tuple[int, Array]]) -> None:
        self._starts = [start for start, _ in parts]
        self._parts = [content for _, content in parts]

    def read(self, offset: int, length: int) -> Array:
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
        content = out.reshape(-1).view(np.uint8)
        content[:] = self.read(offset, len(content))

    def fetch(self, _: Sequence[Extent]) -> Ranges:
        """Return these ranges."""
        return self


class ObjectBytes:
    """An object for thread-safe reads at any offset; see `FileBytes`.

    Args:
        path: of the object.
        digest: what its content is known by in the cache on disk; empty: it is not cached.
    """

    mapped = None

    def __init__(self, path: ObjectPath, digest: str = "") -> None:
        self._path = path
        self._cache = disk_cache() if digest else None
        self._prefix = f"{prefix_of(path)}-{sha256(digest.encode()).hexdigest()[:32]}"
        self._pages: OrderedDict[int, Array] = OrderedDict()
        self._lock = threading.Lock()
        self.size, self._tail = self._read_tail()

    def _read_tail(self) -> tuple[int, Array]:
        """Return the object's size and at most its last `TAIL` bytes."""
        entry, name = np.empty(8 + TAIL, np.uint8), f"{self._prefix}-tail"
        if self._cache is None or not self._cache.read(name, entry):
            size, tail = get_tail(self._path, TAIL)
            padding = np.zeros(TAIL - len(tail), np.uint8)
            entry = np.concatenate([np.array([size]).view(np.uint8), padding, tail], dtype=np.uint8)
            if self._cache:
                self._cache.write(name, entry)
        size = int(entry[:8].view(np.int64)[0])
        return size, entry[8 + max(0, TAIL - size) :]

    def read(self, offset: int, length: int) -> Array:
        """See `FileBytes.read`; small ranges are kept."""
        if offset + length > self.size:
            raise OSError("unexpected end of file")
        in_tail = offset - (self.size - len(self._tail))
        if in_tail >= 0:
            return self._tail[in_tail : in_tail + length]
        if length > _PAGE:
            return self._fetch([(offset, length)], self._cache).read(offset, length)
        pages = range(offset // _PAGE, -(-(offset + length) // _PAGE))
        with self._lock:
            content = np.concatenate([np.empty(0, np.uint8), *map(self._page, pages)])
        first = offset % _PAGE
        return content[first : first + length]

    def _page(self, number: int) -> Array:
        page = self._pages.pop(number, None)
        if page is None:
            stop = min((number + 1) * _PAGE, self.size)
            page = self._range((number * _PAGE, stop), self._cache)[1]
            if len(self._pages) >= _PAGES:
                self._pages.popitem(last=False)
        self._pages[number] = page
        return page

    def read_into(self, out: Array, offset: int) -> None:
        self.fetch([(offset, out.nbytes)]).read_into(out, offset)

    def fetch(self, extents: Sequence[Extent]) -> Ranges:
        """Read ranges concurrently, small gaps included."""
        return self._fetch(extents, self._cache if self._path.caches_rows else None)

    def _fetch(self, extents: Sequence[Extent], cache: DiskCache | None) -> Ranges:
        if cache:  # whole blocks
            ends = ((start // _BLOCK * _BLOCK, start + length) for start, length in extents)
            extents = [(a, min(-(-b // _BLOCK) * _BLOCK, self.size) - a) for a, b in ends]
        parts = planned(extents)
        apply = _threads().map if len(parts) > 1 else map
        return Ranges(list(apply(lambda part: self._range(part, cache), parts)))

    def _range(self, part: tuple[int, int], cache: DiskCache | None) -> tuple[int, Array]:
        """Return the start and the bytes of a part; the cache has its blocks, or will have them."""
        if cache is None:
            return part[0], self._get(*part)
        content = np.empty(part[1] - part[0], np.uint8)
        blocks = [content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)]
        names = [f"{self._prefix}-{part[0] + i * _BLOCK}-{len(b)}" for i, b in enumerate(blocks)]
        missing = [i for i, name in enumerate(names) if not cache.read(name, blocks[i])]
        if missing:
            first, stop = missing[0] * _BLOCK, missing[-1] * _BLOCK + len(blocks[missing[-1]])
            content[first:stop] = self._get(part[0] + first, part[0] + stop)
            for i in missing:
                cache.write(names[i], blocks[i])
        return part[0], content

    def _get(self, start: int, stop: int) -> Array:
        try:
            return np.frombuffer(get_range(self._path, start, stop), np.uint8)
        except OSError as error:
            raise ArchiveError(f"{self._path}: {error.strerror}") from None


ByteSource = FileBytes | ObjectBytes | Ranges
"""Thread-safe reads at any offset of a file or an object."""


def open_bytes(path: Place, digest: str = "") -> FileBytes | ObjectBytes:
    """Open a file or an object; see `ObjectBytes`."""
    return ObjectBytes(path, digest) if isinstance(path, ObjectPath) else FileBytes(path)


def planned(extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """Return the start and stop of each request for some ranges.

    Gaps are read too, smallest first, while they are at most `_GAP` each and `_EXCESS` of the
    requested bytes together. Long ranges are split into parts of whole blocks.

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
        step = _BLOCK * max(1, -(-(stop - start) // (count * _BLOCK)))
        parts += [(a, min(a + step, stop)) for a in range(start, stop, step)]
    return parts


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_REQUESTS, thread_name_prefix="object-store")


os.register_at_fork(after_in_child=_threads.cache_clear)
