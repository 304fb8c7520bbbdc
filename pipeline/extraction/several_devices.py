"""Several devices of one machine: a process for each extracts its part of one archive."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import queue
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from pipeline.common.errors import ConfigError, FeaturemapsError, Interrupted, reraised
from pipeline.common.machine import take_share
from pipeline.common.progress import Progress
from pipeline.common.signals import between_batches, end_with_parent
from pipeline.extraction.devices import choose_device
from pipeline.extraction.settings import Extraction, Shard

if TYPE_CHECKING:
    from pipeline.extraction.extract import Extracted
    from pipeline.extraction.plan import Plan

ALL = "all"
_POLL_SECONDS = 0.2


class Begin(NamedTuple):
    """A part begins: all its samples, and those that it has to write."""

    total: int
    remaining: int


class Advance(NamedTuple):
    """Samples and bytes that a part has written."""

    samples: int
    nbytes: int


class SentProgress:
    """`Progress` of a part, shown by the process that started it."""

    messages: Any = None
    """Queue to that process."""
    stop: Any = None
    """Event by which that process ends the work after a batch."""

    def __init__(self, what: str, total: int, *, done: int) -> None:
        self.messages.put(Begin(total, total - done))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, samples: int, *, nbytes: int) -> None:
        """Send finished samples; raise `Interrupted` if the other process asks for it."""
        self.messages.put(Advance(samples, nbytes))
        if self.stop.is_set():
            raise Interrupted("devices: stopped with the other processes", 130)


def extract_on_devices(
    config: Extraction,
    check: Callable[[Plan], None] | None,
    extract_part: Callable[..., Extracted],
) -> Extracted:
    """Extract on all `config.devices` at once; the part that ends last completes the archive.

    Args:
        check: see `extract`; called in every process.
        extract_part: function of configuration, check and progress that extracts one part.

    Raises:
        ConfigError: when a device is not available, or the model or dataset cannot be pickled.
        FeaturemapsError: the first failure of a process. The others stop after a batch; finished
            shards are kept.
    """
    names = device_names(config.devices)
    if config.shard.count > 1:
        raise ConfigError("devices: each gets its own shard; remove shard.* or devices")
    if config.device != "auto":
        raise ConfigError("devices: names every device; remove device or devices")
    parts = [
        replace(config, devices=(), device=name, shard=Shard(index=index, count=len(names)))
        for index, name in enumerate(names)
    ]
    fact = "devices: the model or the dataset cannot be sent to other processes"
    remedy = "; define it in a file that can be imported, or use one device"
    with reraised(fact, hint=remedy):
        pickle.dumps((parts[0], check))
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    messages, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(len(parts), context, _connect, (messages, stop)) as pool:
        futures = [pool.submit(_extract, extract_part, part, check) for part in parts]
        _attend(futures, messages, stop)
    results = [future.result() for future in futures]
    return replace(
        max(results, key=lambda result: result.complete),
        written=sum(result.written for result in results),
        seconds=max(result.seconds for result in results),
    )


def device_names(devices: Sequence[str]) -> list[str]:
    """Return the devices to use, or raise ConfigError; `all` is every CUDA device."""
    if ALL not in devices:
        return [str(choose_device(name)) for name in devices]
    if not torch.cuda.device_count():
        raise ConfigError("devices: this machine has no CUDA device; remove devices=all")
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def _connect(messages: Any, stop: Any) -> None:
    """Set up a process: log and progress go to the one that started it, which alone gets Ctrl-C."""
    os.setpgid(0, 0)
    SentProgress.messages, SentProgress.stop = messages, stop
    logging.getLogger().addHandler(QueueHandler(messages))
    logging.getLogger().setLevel(logging.INFO)
    end_with_parent()


def _extract(
    extract_part: Callable[..., Extracted], part: Extraction, check: Callable[[Plan], None] | None
) -> Extracted:
    """Extract a part, on its share of the CPU cores."""
    torch.set_num_threads(take_share(part.shard.index, part.shard.count))
    try:
        return extract_part(part, check, SentProgress)
    except Interrupted as error:
        if error.exit_code == 128 + signal.SIGTERM:  # of the pool, which then waits for the process
            os._exit(error.exit_code)
        raise


def _attend(futures: Sequence[Future[Extracted]], messages: Any, stop: Any) -> None:
    """Show progress and log until all parts have ended; raise the first failure."""
    begun: list[Begin] = []
    advanced: list[Advance] = []
    logged: set[str] = set()
    failure: BaseException | None = None
    progress: Progress | None = None
    with between_batches() as request, ExitStack() as stack:
        while True:
            ended = [future for future in futures if future.done()]
            failure = failure or next(filter(None, (f.exception() for f in ended)), None)
            if failure or request.signal:
                stop.set()
            try:
                message = messages.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if len(ended) == len(futures):
                    break
                continue
            if isinstance(message, logging.LogRecord):
                if message.getMessage() not in logged:  # every process says the same
                    logging.getLogger(message.name).handle(message)
                logged.add(message.getMessage())
            elif isinstance(message, Begin):
                begun.append(message)
            else:
                advanced.append(message)
            if progress is None and begun and len(begun) + len(ended) >= len(futures):
                total, remaining = map(sum, zip(*begun, strict=True))
                done = total - remaining
                progress = stack.enter_context(Progress("extract", total, done=done))
            while progress is not None and advanced:
                samples, nbytes = advanced.pop()
                progress.advance(samples, nbytes=nbytes)
        request.check()
    if isinstance(failure, BrokenProcessPool):
        raise FeaturemapsError(
            "devices: a process ended early: killed, perhaps for memory, or started by a script "
            "without `if __name__ == '__main__'`; run it again to resume (finished shards are kept)"
        ) from failure
    if failure is not None:
        raise failure
