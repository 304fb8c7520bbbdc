"""Drawing side by side: samples go to as many workers as wanted, and come back in order.

Few samples are drawn by threads. Many are drawn by forked processes: drawing is made of thousands
of short calls, and threads wait for the interpreter between them (two gain 1.5 times, processes
1.9). Where a fork is not safe (macOS), threads draw everything.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from pipeline.archive.format.samples import StoredSample
from pipeline.common.errors import RenderError
from pipeline.common.machine import shared_memory
from pipeline.common.signals import leave_to_parent
from pipeline.rendering.picture_files import DrawnPicture

Draw = Callable[[StoredSample], list[DrawnPicture]]

_PROCESSES_FROM = 64  # samples: a few seconds of drawing

_inherited: Draw | None = None
"""What a forked process draws with; a function of the parent's cannot be sent to it."""


def draw_all(
    draw: Draw, samples: Sequence[StoredSample], workers: int
) -> Iterator[list[DrawnPicture]]:
    """Yield what `draw` returns for each sample, in order, with a bounded number under way; 0
    workers draw in this thread.
    """
    if workers == 0:
        yield from map(draw, samples)
        return
    forks = sys.platform == "linux" and shared_memory() != 0  # a pool's locks live there
    many = len(samples) >= _PROCESSES_FROM and workers > 1 and forks
    pool = _processes(draw, workers) if many else ThreadPoolExecutor(workers)
    work = _draw_inherited if many else draw
    waiting: deque[Future[list[DrawnPicture]]] = deque()
    try:
        for sample in samples:
            waiting.append(_submit(pool, work, sample))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RenderError(
            "render: a drawing process died (out of memory?); what is drawn is kept, the same "
            "command goes on. render.num_workers=0 shows the cause"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: Executor, work: Draw, sample: StoredSample) -> Future[list[DrawnPicture]]:
    with warnings.catch_warnings():
        # Python 3.12 and later warn of forks beside threads; the children only draw.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
        return pool.submit(work, sample)


def _processes(draw: Draw, workers: int) -> ProcessPoolExecutor:
    global _inherited
    _inherited = draw  # the processes are forked, all of them, when the first sample is submitted
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(os.getpid(),),
    )


def _begin(parent: int) -> None:
    leave_to_parent()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _draw_inherited(sample: StoredSample) -> list[DrawnPicture]:
    assert _inherited is not None
    return _inherited(sample)
