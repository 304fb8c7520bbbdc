"""Locks: one writer at a time for a whole archive, or for each part of a sharded extraction."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.archive.format import schema
from pipeline.common.errors import ArchiveBusyError
from pipeline.common.locks import locked

_TRIES = 5
_PAUSE = 0.05
"""Seconds between two tries: whoever looks whether a lock is held holds it for a moment."""


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
    with locked(archive / schema.LOCK, wait=True):
        pass


def _take(path: Path, held: ExitStack, *, shared: bool) -> None:
    for last in (*[False] * (_TRIES - 1), True):
        try:
            held.enter_context(locked(path, shared=shared))
        except BlockingIOError as error:
            if last:
                raise ArchiveBusyError(
                    f"{path.parent}: another process is writing this archive ({path.name} is "
                    "held); wait for it, or give another archive="
                ) from error
            time.sleep(_PAUSE)
        else:
            return
