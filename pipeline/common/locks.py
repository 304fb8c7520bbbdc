"""File locks that end with the process that took them, however it ends.

A lock (flock) belongs to an open file, and a forked process inherits the file: a loader's worker
would hold its dead parent's lock until it ends itself. So every forked process closes them at once.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()
"""Descriptors of this process's locks."""


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the exclusive lock of a file.

    A writer that takes the lock at this very moment finds it held, and must try again.

    Raises:
        OSError: when the file cannot be opened.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file while the block runs; the file is made if it is not there.

    Args:
        path: of the file, whose content does not matter.
        shared: whether others may hold it too, all of them shared.
        wait: whether to wait for whoever holds it.

    Raises:
        BlockingIOError: when another process holds it and `wait` is false.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.add(descriptor)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        yield
    finally:
        if descriptor in _held:  # not so in a forked process, which has closed it
            _held.discard(descriptor)
            os.close(descriptor)
