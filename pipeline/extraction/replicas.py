"""Replicas: on a CPU, batches go through the model side by side, each on a core of its own.

One batch spread over all cores makes every layer wait for its slowest core, and longest where
decoding and writing want cores too; batches side by side never wait for each other. They also make
the values independent of the number of cores, which decides how a single layer is divided.

Every replica has its own copy of the modules, with hooks of its own; parameters are shared. A model
that a copy does not reproduce bit for bit (one that draws random numbers, or whose `forward` is
bound to the original) runs in one replica on all cores, and so does every model on a GPU.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Self

import torch
from torch import Tensor, nn

from pipeline.archive.writer import ActivationBatch
from pipeline.extraction.buffers import Pool
from pipeline.extraction.forward import Forward
from pipeline.extraction.model_trace import dry_batch
from pipeline.extraction.plan import Plan
from pipeline.extraction.settings import Extraction
from pipeline.foundation.errors import one_line
from pipeline.inputs.loading import Batch

log = logging.getLogger(__name__)
_MOST_REPLICAS = 16
_WAITING = 1  # batches ready for the next free replica


class ModelReplicas:
    """The model under capture, once per replica, for one extraction; use it in a `with` block."""

    def __init__(self, config: Extraction, plan: Plan) -> None:
        """Prepare as many replicas as torch may use threads; one beside a GPU or compiled."""
        self._config = config
        self._plan = plan
        self._threads = torch.get_num_threads()
        alone = plan.traced.device.type != "cpu" or config.compile
        self._count = 1 if alone else min(self._threads, _MOST_REPLICAS)
        self._stack = ExitStack()
        self._executors: list[ThreadPoolExecutor] = []
        self._forwards: list[Forward] = []

    def __enter__(self) -> Self:
        """Install the hooks, and see that every replica gives the same values.

        Raises:
            ConfigError: when the model cannot be compiled, or is another model then.
        """
        if self._count > 1 and not self._side_by_side():
            self._close()
            self._count = 1
        if self._count == 1:
            self._add(self._plan.traced.model.module, Pool(2))
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hooks away and end the threads."""
        self._close()

    def run(self, batches: Iterable[Batch]) -> Iterator[ActivationBatch]:
        """Yield the rows of every batch, in order; a batch is asked for when a replica can take it.

        Raises:
            LayerError: see `Forward.__call__`.
        """
        if self._count == 1:
            yield from map(self._forwards[0], batches)
            return
        under_way: deque[Future[ActivationBatch]] = deque()
        source = enumerate(batches)
        failure: Exception | None = None
        try:
            while True:
                try:
                    item = next(source, None)
                except Exception as error:  # noqa: BLE001 - raised below, behind the rows before it
                    item, failure = None, error
                if item is None:
                    break
                replica = item[0] % self._count
                under_way.append(self._executors[replica].submit(self._forwards[replica], item[1]))
                if len(under_way) >= self._count + _WAITING:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
            if failure is not None:
                raise failure
        finally:
            for future in under_way:  # in order: a later batch may wait for an earlier one's memory
                with suppress(BaseException):
                    future.result().release()

    def _side_by_side(self) -> bool:
        """Set up every replica; return whether all of them agree with the first."""
        traced = self._plan.traced
        images = dry_batch(traced.model, traced.device, traced.image_shape)
        each = self._threads // self._count
        pool = Pool(self._count + _WAITING + 1)
        expected: dict[str, Tensor] = {}
        modules = [traced.model.module]
        for number in range(self._count):
            try:
                if not number:  # before any has hooks
                    modules += [replica(modules[0]) for _ in range(1, self._count)]
                self._add(modules[number], pool)
                self._executors.append(ThreadPoolExecutor(1, f"replica-{number}", _use, (each,)))
                found = self._executors[-1].submit(self._forwards[-1].dry, images).result()
            except Exception as error:  # noqa: BLE001 - whatever a foreign module's copy does
                log.info("batches go one after another: %s", one_line(error, limit=160))
                return False
            expected = expected or found
            if not all(_equal(found[name], expected[name]) for name in expected):
                log.info("batches go one after another: a copy of the model gives other values")
                return False
        return True

    def _add(self, module: nn.Module, pool: Pool) -> None:
        forward = Forward(self._config, self._plan, module, pool)
        self._forwards.append(self._stack.enter_context(forward))

    def _close(self) -> None:
        for executor in self._executors:
            executor.shutdown()
        if self._executors:
            torch.set_num_threads(self._threads)  # a replica's choice is also that of later threads
        self._executors, self._forwards = [], []
        self._stack.close()


def replica(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its parameters (buffers are copied)."""
    shared = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, memo=shared)


def _use(threads: int) -> None:
    torch.set_num_threads(threads)


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))
