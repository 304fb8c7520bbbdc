"""Replicas: on a CPU, run batches through the model in parallel, each on its own core.

One batch spread over all cores makes every layer wait for its slowest core, all the more while
decoding and writing also use cores; parallel batches never wait for each other. They also make
values independent of the number of cores, which determines how torch divides a single layer.

Every replica has its own copy of the modules with its own hooks; parameters are shared. A model
runs in one replica on all cores if its copies would share more (see `shared_state`), or if they do
not reproduce its values bit for bit while running in parallel. So does every model on a GPU.
"""

import copy
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.archive.writing.shard_writer import ActivationBatch
from pipeline.common.errors import one_line
from pipeline.extraction.buffers import Pool, new_pool
from pipeline.extraction.dummy_forward import dummy_batch
from pipeline.extraction.hooked_model import HookedModel
from pipeline.extraction.loader import Batch
from pipeline.extraction.model_fingerprint import random_state
from pipeline.extraction.plan import Plan
from pipeline.extraction.shared_state import shared_state

log = logging.getLogger(__name__)
_MOST_REPLICAS = 16
_WAITING = 1  # batches queued for the next free replica
_CHECKED_BATCHES = ((2, 1), (1, 2))  # number of images and seed
_LOCKSTEP_TIMEOUT = 60  # seconds, in case a model holds its own lock
_UNUSUAL_SEED = 2_718_281_828  # a model that seeds with the same number would go unnoticed


class ModelReplicas:
    """The hooked model, once per replica, for one extraction; use it in a `with` block."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._threads = torch.get_num_threads()
        alone = plan.traced.device.type != "cpu" or plan.config.compile
        self.count = 1 if alone else min(self._threads, _MOST_REPLICAS)
        self._stack = ExitStack()
        self._executors: list[ThreadPoolExecutor] = []
        self._forwards: list[HookedModel] = []

    def __enter__(self) -> Self:
        """Install the hooks, and check that every replica gives the same values."""
        if self.count > 1:
            try:
                obstacle = self._start_replicas()
            except Exception as error:  # noqa: BLE001 - copying a foreign module raises anything
                obstacle = one_line(error, limit=160)
            if obstacle:
                log.info("batches run sequentially: %s", obstacle)
                self._close()
                self.count = 1
        if self.count == 1:
            self._add(self._plan.traced.model.module, new_pool(2))
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(self, batches: Iterable[Batch]) -> Iterator[ActivationBatch]:
        """Yield the rows of every batch, in order; a batch is loaded when a replica can take it."""
        if self.count == 1:
            yield from map(self._forwards[0], batches)
            return
        under_way: deque[Future[ActivationBatch]] = deque()
        source = enumerate(batches)
        failure: Exception | None = None
        try:
            while True:
                try:
                    item = next(source, None)
                except Exception as error:  # noqa: BLE001 - raised below, after the earlier rows
                    item, failure = None, error
                if item is None:
                    break
                replica = item[0] % self.count
                under_way.append(self._executors[replica].submit(self._forwards[replica], item[1]))
                if len(under_way) >= self.count + _WAITING:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
            if failure is not None:
                raise failure
        finally:
            for future in under_way:  # in order: a later batch may wait for an earlier one's memory
                with suppress(BaseException):
                    future.result().release()

    def _start_replicas(self) -> str:
        """Set up every replica; return why they cannot run in parallel, empty if they can."""
        model, pool = self._plan.traced.model.module, new_pool(self.count + _WAITING + 1)
        if shared := shared_state(model):
            return f"copies of the model would share {shared}"
        threads = (self._threads // self.count,)
        self._executors = [
            ThreadPoolExecutor(1, f"replica-{number}", torch.set_num_threads, threads)
            for number in range(self.count)
        ]
        traced = self._plan.traced
        batches = [
            dummy_batch(traced.model, traced.device, traced.image_shape, *sizes)
            for sizes in _CHECKED_BATCHES
        ]

        def plain() -> tuple[list[dict[str, Tensor]], bool]:
            with (
                HookedModel(self._plan, model, pool) as forward,
                _watched_generators() as used,
                _hooked(forward.module, lambda *_: None),  # they may change how torch computes
            ):
                return [forward.dummy_forward(images) for images in batches], used()

        expected, draws = self._executors[0].submit(plain).result()
        if draws:
            return "the model draws random numbers"
        copies = [replica(model) for _ in range(1, self.count)]
        for module in (model, *copies):  # once no hook is left to copy
            self._add(module, pool)
        choices = [(number + 1) % len(batches) for number in range(self.count)]
        activations = self._in_step([batches[choice] for choice in choices])
        for choice, activation in zip(choices, activations, strict=True):
            if not all(_equal(activation[name], x) for name, x in expected[choice].items()):
                return "a copy of the model returns different values"
        return ""

    def _in_step(self, batches: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Run every replica on its own batch, in lockstep.

        Each module starts and ends in all replicas before the next one starts, which exposes shared
        state.
        """
        barrier = threading.Barrier(self.count, timeout=_LOCKSTEP_TIMEOUT)

        def wait(*_: object) -> None:
            with suppress(threading.BrokenBarrierError):
                barrier.wait()

        def run(forward: HookedModel, images: Tensor) -> dict[str, Tensor]:
            try:
                return forward.dummy_forward(images)
            finally:
                barrier.abort()  # releases replicas that run other modules

        with ExitStack() as hooks:
            for forward in self._forwards:
                hooks.enter_context(_hooked(forward.module, wait))
            running = [
                executor.submit(run, forward, images)
                for executor, forward, images in zip(
                    self._executors, self._forwards, batches, strict=True
                )
            ]
            futures.wait(running)
        return [future.result() for future in running]

    def _add(self, module: nn.Module, pool: Pool) -> None:
        forward = HookedModel(self._plan, module, pool)
        self._forwards.append(self._stack.enter_context(forward))

    def _close(self) -> None:
        for executor in self._executors:
            executor.shutdown()
        if self._executors:
            torch.set_num_threads(self._threads)  # later threads inherit a replica's setting
        self._executors, self._forwards = [], []
        self._stack.close()


def replica(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its parameters (buffers are copied)."""
    memo: dict[int, object] = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, memo)


@contextmanager
def _hooked(model: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """Call a hook before and after every module, after its existing hooks."""
    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(hook).remove)
            hooks.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def _watched_generators() -> Iterator[Callable[[], bool]]:
    """Seed every global generator; yield a function that returns whether any was used since."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    device = torch.device("cpu")
    try:
        with torch.random.fork_rng(devices=[]):
            for seed in (torch.manual_seed, np.random.seed, random.seed):
                seed(_UNUSUAL_SEED)
            before = random_state(device)
            yield lambda: random_state(device) != before
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))
