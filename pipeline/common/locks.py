"""File locks that are released when their process ends, even if it is killed.

Forked processes inherit open files and their locks (flock). They close them at once, so that a
DataLoader worker does not hold the lock of its dead parent.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pipeline.common.places import Place

log = logging.getLogger(__name__)

_held: set[int] = set()
"""File descriptors of locks held by this process."""


def _close_inherited() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


def is_locked(path: Place) -> bool:
    """Return whether a process holds the exclusive lock of a file.

    The check briefly takes a shared lock, so a concurrent writer must retry.

    Raises:
        OSError: when the file cannot be opened.
    """
    with path.open("rb") as file:
        try:
            _flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB, path)
        except BlockingIOError:
            return True
    return False


def _flock(descriptor: int, kind: int, path: Place) -> None:
    """Lock a file, unless its file system has no locks, such as Lustre mounted without flock."""
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        _warn_of_no_locks(path.parent)


@cache
def _warn_of_no_locks(folder: Place) -> None:
    log.warning("%s: the file system has no locks; run one command at a time there", folder)


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file while the block runs; create the file if it does not exist.

    Args:
        path: lock file; its content is not used.
        shared: take a shared lock, which several processes can hold.
        wait: wait until the lock is free.

    Raises:
        BlockingIOError: when another process holds it and `wait` is false.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.add(descriptor)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        _flock(descriptor, kind if wait else kind | fcntl.LOCK_NB, path)
        yield
    finally:
        if descriptor in _held:  # a forked process has closed it already
            _held.discard(descriptor)
            os.close(descriptor)
