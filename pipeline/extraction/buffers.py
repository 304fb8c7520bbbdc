"""Buffers: reusable host memory for activations.

While the writer writes one set of arrays, the next batch fills another. Memory stays bounded, the
forward pass waits for a slow disk, and no batch allocates new pages. For a GPU the memory is
pinned, and copies run on their own stream while the next batch is computed.
"""

import queue
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Set = dict[str, Tensor]
Pool = queue.Queue[Set]
"""Sets of host tensors that forward passes take and return."""

_cuda: Any = torch.cuda  # its streams and events have no types


def new_pool(sets: int) -> Pool:
    """Return a pool of empty sets."""
    pool: Pool = queue.Queue()
    for _ in range(sets):
        pool.put({})
    return pool


class Buffers:
    """The set that a forward pass fills, and a scratch set, for one device."""

    def __init__(self, device: torch.device, batch_size: int, pool: Pool) -> None:
        self._device = device
        self._batch_size = batch_size
        self._free = pool
        self._scratch: Set = {}
        self._current: Set = {}
        self._stream: Any = _cuda.Stream(device) if device.type == "cuda" else None

    def next_set(self) -> Callable[[], None]:
        """Take the next free set, waiting if necessary; return the function that releases it."""
        self._current = self._free.get()
        return partial(self._free.put, self._current)

    def memory(self, name: str, like: Tensor, *, scratch: bool) -> Tensor:
        """Return float32 memory of the shape of `like`, from the current or the scratch set."""
        return self._take(self._scratch if scratch else self._current, name, like, torch.float32)

    def keep(self, name: str, activation: Tensor, dtype: torch.dtype) -> Tensor:
        """Copy an activation to the current set, cast to `dtype`.

        From a GPU the copy is asynchronous (see `done`).
        """
        out = self._take(self._current, name, activation, dtype)
        if self._stream is None or activation.device.type == "cpu":  # no sample was computed
            return out.copy_(activation)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            short = activation.to(dtype)
            out.copy_(short, non_blocking=True)
            for tensor in (activation, short):
                tensor.record_stream(self._stream)  # not reused before it is copied
        return out

    def done(self) -> Callable[[], None]:
        """Return a function that waits for all copies started so far."""
        if self._stream is None:
            return lambda: None
        event = _cuda.Event()
        event.record(self._stream)
        return partial(event.synchronize)

    def _take(self, tensors: Set, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        samples, shape = like.shape[0], like.shape[1:]
        buffer = tensors.get(name)
        if buffer is None or buffer.shape[1:] != shape or len(buffer) < samples:
            size = max(samples, self._batch_size)
            pinned = self._stream is not None and tensors is not self._scratch
            buffer = torch.empty((size, *shape), dtype=dtype, pin_memory=pinned)
            tensors[name] = buffer
        return buffer[:samples]
