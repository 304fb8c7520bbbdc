"""Signals: SIGINT and SIGTERM end long work between two batches, with exit code 128 + signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.common.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a signal has asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def check(self) -> None:
        """Raise if a signal has arrived."""
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            raise Interrupted(
                f"stopped by {name}; finished shards are kept, the same command goes on from there "
                "(give it the same archive= or hydra.run.dir=)",
                128 + self.signal,
            )


def terminate_cleanly() -> None:
    """Make SIGTERM raise `Interrupted` anywhere, and SIGINT KeyboardInterrupt.

    Set explicitly: a shell's background jobs are started with SIGINT ignored.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _raise_interrupted)


def _raise_interrupted(number: int, _frame: FrameType | None) -> None:
    raise Interrupted("stopped by SIGTERM; the same command goes on", 128 + number)


def leave_to_parent() -> None:
    """Let this process's parent decide about signals: Ctrl-C reaches the whole process group, and
    the parent ends its children itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def between_batches() -> Iterator[StopRequest]:
    """Note signals instead of raising, while the block runs; a second one leaves at once.

    Outside the main thread nothing is changed.

    Yields:
        The request, to be checked between two batches.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if request.signal is not None:
            os._exit(128 + number)
        request.signal = number

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
