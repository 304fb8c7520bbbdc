"""Parallel drawing: workers draw samples, and the results come back in order.

Threads draw few samples, forked processes many: drawing makes thousands of short calls, between
which threads wait for the interpreter lock (two threads gain 1.5 times, two processes 1.9). Where
forking is not safe (macOS, archives in object stores) or not allowed (in a daemonic process),
threads draw everything.
"""

import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from pipeline.archive.format.samples import StoredSample
from pipeline.common import object_store
from pipeline.common.errors import RenderError
from pipeline.common.machine import shared_memory
from pipeline.common.places import in_order
from pipeline.common.signals import leave_to_parent
from pipeline.rendering.picture_files import DrawnPicture

Draw = Callable[[StoredSample], list[DrawnPicture]]

_PROCESSES_FROM = 64  # samples: a few seconds of drawing

_inherited: Draw | None = None
"""Draw function of the forked processes; a closure cannot be pickled."""


def draw_all(
    draw: Draw, samples: Sequence[StoredSample], workers: int
) -> Iterator[list[DrawnPicture]]:
    """Yield the result of `draw` for each sample in order, with a bounded number in flight; with 0
    workers, draw in this thread.
    """
    if workers == 0:
        yield from map(draw, samples)
        return
    forks = sys.platform == "linux" and shared_memory() != 0  # process pools keep their locks there
    forks = forks and not object_store.in_use() and not multiprocessing.current_process().daemon
    many = len(samples) >= _PROCESSES_FROM and workers > 1 and forks
    pool = _processes(draw, workers) if many else ThreadPoolExecutor(workers)
    work = _draw_inherited if many else draw
    try:
        yield from in_order(pool, work, samples, 2 * workers)
    except BrokenProcessPool as error:
        raise RenderError(
            "render: a drawing process died (out of memory?); finished pictures are kept; run the "
            "same command again to continue, or set render.num_workers=0 to see the cause"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _processes(draw: Draw, workers: int) -> ProcessPoolExecutor:
    global _inherited
    _inherited = draw
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=leave_to_parent)
    with warnings.catch_warnings():
        # Python 3.12 and later warn about forking with threads; the children only draw.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
        pool.submit(int)  # the first task forks all processes
    return pool


def _draw_inherited(sample: StoredSample) -> list[DrawnPicture]:
    assert _inherited is not None
    return _inherited(sample)
