"""Locks: one writer at a time for a whole archive, or for each part of a sharded extraction."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.archive.format import schema
from pipeline.common.errors import ArchiveBusyError
from pipeline.common.locks import locked
from pipeline.common.places import Place, local

_TRIES = 5
_PAUSE = 0.05
"""Seconds between attempts: a process that tests a lock holds it for a moment."""


@contextmanager
def writing(archive: Place, *, part: int | None = None) -> Iterator[None]:
    """Hold a writer's lock of an archive folder, or of one part of it, while the block runs.

    Object stores have no locks: writers of one archive write the same, and the first one counts.
    """
    with ExitStack() as locks:
        folder = local(archive)
        if folder and os.access(folder, os.W_OK):  # a complete archive may be on a read-only disk
            _take(folder / schema.LOCK, locks, shared=part is not None)
            if part is not None:
                _take(folder / f"{schema.LOCK}.{part}", locks, shared=False)
        yield


def wait(archive: Place) -> None:
    """Wait until no process writes an archive."""
    if folder := local(archive):
        with locked(folder / schema.LOCK, wait=True):
            pass


def _take(path: Path, locks: ExitStack, *, shared: bool) -> None:
    for last in (*[False] * (_TRIES - 1), True):
        try:
            locks.enter_context(locked(path, shared=shared))
        except BlockingIOError as error:
            if last:
                raise ArchiveBusyError(
                    f"{path.parent}: another process is writing this archive ({path.name} is "
                    "held); wait until it ends, or set another archive="
                ) from error
            time.sleep(_PAUSE)
        else:
            return
