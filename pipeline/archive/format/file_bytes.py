"""Bytes of a file by offset: memory-mapped on a local disk, read from other file systems, requested
from object stores (`object_bytes.py`).

An I/O error in a mapped file kills the process with SIGBUS. Network file systems fail more often
than disks, so their files are read instead, which raises an error.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.machine import on_local_disk

Extent = tuple[int, int]
"""Offset and length in bytes."""


class FileBytes:
    """A file for thread-safe reads at any offset; closed with the last reference.

    Attributes:
        size: file size in bytes.
        mapped: the whole file as uint8 `(byte,)`, or None if it is not memory-mapped.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        self.size = status.st_size
        self.mapped: Array | None = None
        if self.size and on_local_disk(path):
            memory = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)
            self.mapped = np.frombuffer(memory, np.uint8)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "_descriptor"):
            close(self._descriptor)

    def read(self, offset: int, length: int) -> Array:
        """Return bytes as uint8 `(byte,)`, a view if the file is mapped; OSError at its end."""
        if self.mapped is not None:
            content = self.mapped[offset : offset + length]
            if len(content) < length:
                raise OSError("unexpected end of file")
            return content
        content = np.empty(length, np.uint8)
        self.read_into(content, offset)
        return content

    def read_into(self, out: Array, offset: int) -> None:
        """Fill a contiguous array with the bytes from an offset on; see `read`."""
        content = out.data.cast("B")
        while content:
            count = os.preadv(self._descriptor, [content], offset)
            if count == 0:
                raise OSError("unexpected end of file")
            content, offset = content[count:], offset + count

    def fetch(self, _: Sequence[Extent]) -> FileBytes:
        """Return a source that has requested some ranges: this file, since it does not pay."""
        return self
