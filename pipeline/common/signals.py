"""SIGINT and SIGTERM stop long work between two batches, with exit code 128 + signal."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from pipeline.common.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Flag that a signal sets to stop the work."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        number, self.signal = self.signal, None
        if number is not None:
            raise Interrupted(
                f"stopped by {signal.Signals(number).name}; run the same command with the same "
                "archive= or hydra.run.dir= to resume (finished shards are kept)",
                128 + number,
            )


def terminate_cleanly() -> None:
    """Make SIGTERM raise `Interrupted` anywhere, and SIGINT KeyboardInterrupt.

    Set explicitly, since shells start background jobs with SIGINT ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminated)


def terminated(number: int, _frame: FrameType | None = None) -> NoReturn:
    """Raise `Interrupted`, as a handler of SIGTERM."""
    raise Interrupted("stopped by SIGTERM; run the same command again to resume", 128 + number)


def leave_to_parent() -> None:
    """Ignore SIGINT, which reaches the whole process group; the parent ends its children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def end_with_parent() -> None:
    """Exit this worker process when the process that uses it is gone, for any reason.

    That process is not always the system's parent, which may be a fork server.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def between_batches() -> Iterator[StopRequest]:
    """Record signals instead of raising while the block runs; a second one exits at once.

    Call `check` of the request between two batches. A signal that it has not raised takes effect at
    the end of the block. Outside the main thread, signals are unchanged.
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
        if request.signal is not None:  # e.g. of a pool that waits for this process to end
            signal.raise_signal(request.signal)
