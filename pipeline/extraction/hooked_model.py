"""Hooked model: compute the archive's rows for a batch of pixels.

Pixels are normalised on the device. Every activation is checked, reduced, copied and cast on the
device, then copied to the host with its statistics.
"""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.archive.writing.shard_writer import ActivationBatch
from pipeline.capture.activations import Activations
from pipeline.capture.hooks import capture, copied, copy_into
from pipeline.capture.hooks import forward as run_forward
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, LayerError, one_line
from pipeline.extraction.batch_size import too_large
from pipeline.extraction.buffers import Buffers, Pool
from pipeline.extraction.dummy_forward import dummy_batch, model_failures_named
from pipeline.extraction.loader import Batch
from pipeline.extraction.measurements import Measurements
from pipeline.extraction.memory_format import channels_last
from pipeline.extraction.model_fingerprint import close
from pipeline.extraction.model_state import ModelState
from pipeline.extraction.plan import Plan

log = logging.getLogger(__name__)


class HookedModel:
    """A model with hooks for one extraction; use it in a `with` block."""

    def __init__(self, plan: Plan, module: nn.Module, pool: Pool) -> None:
        self._config = config = plan.config
        self._plan = plan
        self.module = module
        self._state = ModelState(module, plan.traced.state.places)
        self._transform = plan.traced.model.transform
        self._device = plan.traced.device
        self._layers = {layer.name: layer for layer in plan.layers}
        self._reductions = {name: config.reduction.of_layer(name) for name in self._layers}
        self._entries = {entry.name: entry for entry in plan.manifest.layers}
        self._function_calls = Counter(call.layer for call in plan.traced.trace.functions)
        self._row = 0  # the first of the batch
        self._samples = 0  # of the batch
        self._stored: torch.dtype = getattr(torch, config.storage.dtype)
        self._short = self._stored is not torch.float32
        self._buffers = Buffers(self._device, plan.batch_size, pool)
        self._run: Any = module

    def __enter__(self) -> Self:
        """Install the hooks, and compile if configured."""
        if self._config.compile and self._function_calls:
            raise ConfigError(
                "compile: function calls of a compiled model cannot be captured; set compile=false"
            )
        count_calls = self._config.compile or self._function_calls  # whose calls are all counted
        stop = len(self._layers) if self._config.early_stop and not count_calls else None
        with ExitStack() as hooks:
            if self._plan.channels_last:
                hooks.enter_context(channels_last(self.module))
            self._activations: Activations = hooks.enter_context(
                capture(self.module, list(self._layers), process=self._keep, stop_after=stop)
            )
            if self._config.compile:
                self._compile()
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def __call__(self, batch: Batch) -> ActivationBatch:
        """Return the rows of a batch; on a GPU they and their statistics are still under way.

        Raises:
            LayerError: when a layer's shape differs from the dummy batch's; raised by `arrived` of
                the rows: when a value overflows the stored dtype, or is NaN or infinite and
                `on_nonfinite` is `raise`.
            ConfigError: when the batch does not fit into device memory.
        """
        release = self._buffers.next_set()
        try:
            return self._rows(batch, release)
        except BaseException as error:
            release()
            if isinstance(error, torch.OutOfMemoryError):
                raise too_large(self._device, len(batch.errors)) from error
            raise

    def dummy_forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return copies of every selected layer's activation for normalised images."""
        release = self._buffers.next_set()
        try:
            return {name: x.clone() for name, x in self._capture(images, "the dummy batch").items()}
        finally:
            release()

    def _rows(self, batch: Batch, release: Callable[[], None]) -> ActivationBatch:
        self._row = batch.start
        good = np.array([not error for error in batch.errors], dtype=bool)
        stored: dict[str, Array] = {}
        measurements = Measurements(self._config, self._buffers, batch.start, good)
        for name, activation in self._activations_of(batch, good).items():
            measurements.start(self._entries[name], activation)
            if activation.device.type != "cpu" or self._short:  # not captured in its buffer
                activation = self._buffers.keep(name, activation, self._stored)
            stored[name] = _bits(activation)
        copied = self._buffers.done()

        def arrived() -> None:
            copied()
            measurements.finish()

        samples = self._plan.images.samples[batch.start : batch.start + len(batch.errors)]
        return ActivationBatch(
            start=batch.start,
            images=batch.pixels.numpy(),
            activations=stored,
            statistics=measurements.statistics,
            samples=[(s.id, s.label, s.label_name, s.path) for s in samples],
            errors=batch.errors,
            rounding=measurements.rounding,
            arrived=arrived,
            release=release,
        )

    def _activations_of(self, batch: Batch, good: Array) -> dict[str, Tensor]:
        """Run the model on a batch, with a good sample in place of every skipped one.

        Those rows are discarded, but a black image might make the model fail. A batch without any
        good sample does not go through the model.
        """
        if not good.any():
            return {
                name: torch.full((len(good), *entry.shape), torch.nan, dtype=torch.float32)
                for name, entry in self._entries.items()
            }
        pixels = batch.pixels
        if not good.all():
            first = int(np.argmax(good))
            pixels = pixels[[row if usable else first for row, usable in enumerate(good)]]
        images = self._transform.normalize(pixels.to(self._device, non_blocking=True))
        return self._capture(images, f"the batch at row {batch.start}")

    def _capture(self, images: Tensor, subject: str) -> dict[str, Tensor]:
        """Run the model and return every selected layer's activation, on the device."""
        if self._plan.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self._samples = len(images)
        failures = model_failures_named(subject, but=(torch.OutOfMemoryError,))
        short = self._config.precision != "float32"
        dtype = getattr(torch, self._config.precision) if short else None
        autocast = torch.autocast(self._device.type, dtype=dtype, enabled=short)
        with torch.no_grad(), autocast, failures, self._state:
            run_forward(self._run, images)
        functions = self._activations.function_calls
        counts = [(name, functions[name], self._function_calls[name]) for name in functions]
        counts += [(name, len(self._activations.calls(name)), 1) for name in self._layers]
        for name, count, expected in counts:
            if count != expected:
                raise LayerError(
                    f"layers: {name} was called {count} times in {subject}, not {expected} as in "
                    "the dummy batch; its calls depend on the images"
                )
        return {name: self._activations[name] for name in self._layers}

    def _compile(self) -> None:
        """Compile the hooked module and compare its activations with the plain module's."""
        traced = self._plan.traced
        images = dummy_batch(traced.model, self._device, traced.image_shape)
        plain = self.dummy_forward(images)
        self._run = torch.compile(self.module)
        try:
            compiled = self._capture(images, "the compiled dummy batch")
        except LayerError:
            raise
        except Exception as error:
            raise ConfigError(
                f"compile: the model cannot be compiled ({one_line(error, limit=200)}); "
                "set compile=false"
            ) from error
        for name, expected in plain.items():
            if not close(expected, compiled[name]):
                scale = float(expected.abs().max())
                off = float((compiled[name] - expected).abs().max())
                raise ConfigError(
                    f"compile: {name} differs by {off:.3g} (its largest value is {scale:.3g}) from "
                    "the plain model; set compile=false"
                )
        log.info("compiled; activations agree with the plain model's")

    def _keep(self, name: str, output: Tensor) -> Tensor:
        """Check, reduce and copy a layer's output; runs inside the hook, on the device."""
        layer = self._layers[name]
        rows = layer.rows(output.detach()) if output.ndim > layer.sample_axis else output
        if tuple(rows.shape) != (self._samples, *layer.shape):
            raise LayerError(
                f"layers: {name} returned shape {tuple(rows.shape[1:])} per sample, "
                f"but {layer.shape} in the dummy batch; a varying shape cannot be archived"
                if tuple(rows.shape[1:]) != layer.shape
                else f"layers: {name} returned {len(rows)} rows for {self._samples} images; "
                "a layer must return one row per image; leave it out with layers.exclude"
            )
        if rows.dtype is torch.float64 and bool((rows.isfinite() & rows.float().isinf()).any()):
            raise LayerError(
                f"layers: {name} reaches {float(rows.nan_to_num(0, 0, 0).abs().max()):.6g} in "
                f"float64, but archives hold float32, which ends at "
                f"{torch.finfo(torch.float32).max:.6g}; leave it out with layers.exclude"
            )
        reduction = self._reductions[name].for_rows(self._row)
        reduced = reduction(rows, layer.axes)
        if self._device.type != "cpu":
            return copied(reduced, torch.float32)
        return copy_into(self._buffers.memory(name, reduced, scratch=self._short), reduced)


def _bits(values: Tensor) -> Array:
    """Return an array of the same memory, with bfloat16 as its bits, as NumPy lacks it."""
    if values.dtype is torch.bfloat16:
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()
