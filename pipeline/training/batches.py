"""Batches of a loader: cast, and copied to a device while earlier ones are used."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import ConfigError

_cuda: Any = torch.cuda  # its streams and events have no types


class LoadedBatch(NamedTuple):
    """A batch, which owns its memory.

    Attributes:
        activations: layer → `(sample, …)`; with positions or tokens `(sample · vector, channel)`.
        labels: `(sample,)` or `(sample · vector,)` int64; -1: unlabelled.
        rows: rows of the samples in the archive, with the shape of `labels`.
        positions: layer → index of each vector in the layer's map or grid, row by row, or in its
            tokens without prefix tokens, with the shape of `labels`; for prefix tokens negative,
            from `-prefix_tokens` (the first) to -1. For archives made with `reduction=positions`
            also for whole activations, `(sample, token)`. Empty in all other cases.
    """

    activations: dict[str, Tensor]
    labels: Tensor
    rows: Tensor
    positions: dict[str, Tensor]

    @property
    def entropy(self) -> float:
        """Entropy of the vectors' samples, in nats; its exponential is their effective number."""
        counts = np.unique(self.rows, return_counts=True)[1]
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())


BatchType = Literal["float32", "bfloat16", "float16"]


class Transfer:
    """Cast to a dtype and copy to a device; for CUDA from pinned memory, on a separate stream."""

    def __init__(self, device: str | torch.device, dtype: BatchType | None) -> None:
        """Store the arguments, or raise ConfigError if the device is not available."""
        try:
            self._device = torch.empty(0, device=device).device  # with its index, for the threads
        except (RuntimeError, AssertionError, NotImplementedError, TypeError):
            raise ConfigError(
                f"device: {str(device)!r} is not available; use cpu, or a device that torch finds"
            ) from None
        self._dtype = None if dtype is None else getattr(torch, dtype)
        self._stream = _cuda.Stream(self._device) if self._device.type == "cuda" else None

    def start(self, batch: LoadedBatch) -> tuple[LoadedBatch, Any]:
        """Start the transfer of a batch's activations and labels; return `finish`'s arguments."""
        tensors = batch.activations
        if self._dtype is not None:
            tensors = {key: _cast(key, values, self._dtype) for key, values in tensors.items()}
        if self._stream is None:
            tensors = {key: values.to(self._device) for key, values in tensors.items()}
            labels = batch.labels.to(self._device)
            return batch._replace(activations=tensors, labels=labels), None
        with _cuda.stream(self._stream):
            labels, *moved = (
                values.pin_memory().to(self._device, non_blocking=True)
                for values in (batch.labels, *tensors.values())
            )
            event = self._stream.record_event()
        tensors = dict(zip(tensors, moved, strict=True))
        return batch._replace(activations=tensors, labels=labels), event

    def finish(self, batch: LoadedBatch, event: Any) -> LoadedBatch:
        """Return a batch for work on the current stream, which waits for the copies."""
        if event is not None:
            stream = _cuda.current_stream(self._device)
            stream.wait_event(event)
            for tensor in (batch.labels, *batch.activations.values()):
                tensor.record_stream(stream)  # its memory is not reused before
        return batch


def _cast(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values as a type, or raise ConfigError if a finite one would become infinite."""
    if dtype is torch.float16:
        limit = torch.finfo(dtype).max
        low, high = values.aminmax()
        if not max(high, -low) <= limit:  # also NaN and infinity
            largest = float(values.nan_to_num(0, 0, 0).abs().max())
            if largest > limit:
                raise ConfigError(
                    f"dtype: {name} reaches {largest:.6g}, but float16 ends at {limit:.6g}; use "
                    "bfloat16 or float32"
                )
    return values.to(dtype)
