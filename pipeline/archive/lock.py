"""Locks: one writer at a time for a whole archive, or for each part of a sharded extraction."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.archive import schema
from pipeline.errors import ArchiveBusyError


@contextmanager
def writing(archive: Path, *, part: int | None = None) -> Iterator[None]:
    """Hold the lock of a writer while the block runs.

    Args:
        archive: an existing archive folder.
        part: the part of a sharded extraction; None takes the whole archive.

    Raises:
        ArchiveBusyError: when another process writes the archive, or this part of it.
    """
    with ExitStack() as held:
        _take(archive / schema.LOCK, held, shared=part is not None)
        if part is not None:
            _take(archive / f"{schema.LOCK}.{part}", held, shared=False)
        yield


def wait(archive: Path) -> None:
    """Wait until no process writes an archive."""
    descriptor = _opened(archive / schema.LOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _take(path: Path, held: ExitStack, *, shared: bool) -> None:
    descriptor = _opened(path)
    held.callback(os.close, descriptor)  # closing releases the lock
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ArchiveBusyError(
            f"{path.parent}: another process is writing this archive ({path.name} is held); "
            "wait for it, or give another archive="
        ) from error


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
