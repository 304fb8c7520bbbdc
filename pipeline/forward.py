"""Forward: a batch of pixels becomes the rows of the archive.

Normalised on the device, through the model under capture; every activation is checked, reduced,
copied and cast where it arises, then brought to the host with its statistics.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import statistics
from pipeline.archive.writer import Rows
from pipeline.capture import Activations, capture, copied
from pipeline.capture import forward as run_forward
from pipeline.errors import ConfigError, LayerError
from pipeline.execution import OnNonfinite, Precision, StoredType
from pipeline.loading import Batch
from pipeline.names import one_line
from pipeline.planning import DRY_BATCH, Plan

if TYPE_CHECKING:
    from pipeline.extract import Extraction

log = logging.getLogger(__name__)
_COMPILED_TOLERANCE = 1e-3


class Forward:
    """The model with its hooks, for one extraction; use it in a `with` block."""

    def __init__(self, config: Extraction, work: Plan) -> None:
        """Prepare for the selected layers."""
        self._config = config
        self._work = work
        self._model = work.observed.model
        self._device = work.observed.device
        self._layers = {layer.name: layer for layer in work.layers}
        self._reductions = {name: config.reduction.of_layer(name) for name in self._layers}
        self._half = config.storage.dtype is StoredType.FLOAT16
        self._hooks = ExitStack()
        self._run: Any = self._model.module

    def __enter__(self) -> Self:
        """Install the hooks, and compile if asked to.

        Raises:
            ConfigError: when the model cannot be compiled, or is another model then.
        """
        module = self._model.module
        if self._config.channels_last:
            module.to(memory_format=torch.channels_last)
        stop = len(self._layers) if self._config.early_stop and not self._config.compile else None
        self._activations: Activations = self._hooks.enter_context(
            capture(module, list(self._layers), process=self._keep, stop_after=stop)
        )
        if self._config.compile:
            try:
                self._compile(module)
            except BaseException:
                self._hooks.close()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the hooks away."""
        self._hooks.close()

    def __call__(self, batch: Batch) -> Rows:
        """Return the rows of a batch.

        Raises:
            LayerError: when a layer returns another shape than in the dry batch, overflows float16,
                or holds NaN or infinity and `on_nonfinite` is `raise`.
        """
        images = self._model.transform.normalize(batch.pixels.to(self._device, non_blocking=True))
        found = self._capture(images, f"the batch at row {batch.start}")
        kept: dict[str, np.ndarray[Any, Any]] = {}
        figures = {}
        rounding: dict[str, float] = {}
        for name, activation in found.items():
            axes = self._reductions[name].axes(self._layers[name].axes)
            figures[name] = statistics.of_batch(activation, axes.index("channel"))
            self._check_finite(name, figures[name], batch)
            stored = self._cast(name, activation, figures[name])
            if self._half:
                rounding[name] = largest_relative_error(activation, stored)
            kept[name] = stored.cpu().numpy()
        samples = self._work.images.samples[batch.start : batch.start + len(batch.errors)]
        return Rows(
            start=batch.start,
            images=batch.pixels.numpy(),
            activations=kept,
            statistics=figures,
            samples=[(s.id, s.label, s.label_name, s.path) for s in samples],
            errors=batch.errors,
            rounding=rounding,
        )

    def _capture(self, images: Tensor, what: str) -> dict[str, Tensor]:
        """Run the model and return the activation of every selected layer, on the device."""
        training = any(part.training for part in self._model.module.modules())
        assert not training, "a module is in training mode"
        if self._config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), self._autocast():
            run_forward(self._run, images)
        found = {}
        for name in self._layers:
            calls = self._activations.calls(name)
            if len(calls) != 1:
                raise LayerError(
                    f"layers: {name} was called {len(calls)} times in {what}, once in the dry "
                    "batch; "
                    "its calls depend on the images"
                )
            found[name] = next(iter(calls.values()))
        return found

    def _compile(self, module: nn.Module) -> None:
        """Compile the hooked module and compare its activations with the plain one's."""
        random = np.random.default_rng(0)
        shape = (DRY_BATCH, *self._work.observed.image_shape)
        pixels = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8)).to(self._device)
        images = self._model.transform.normalize(pixels)
        plain = self._capture(images, "the dry batch")
        self._run = torch.compile(module)
        try:
            compiled = self._capture(images, "the compiled dry batch")
        except LayerError:
            raise
        except Exception as error:
            raise ConfigError(
                f"compile: the model cannot be compiled here ({one_line(error, limit=200)}); "
                "set compile=false"
            ) from error
        for name, expected in plain.items():
            scale = float(expected.abs().max())
            off = float((compiled[name] - expected).abs().max())
            if not off <= _COMPILED_TOLERANCE * scale:
                raise ConfigError(
                    f"compile: {name} differs by {off:.3g} (its largest value is {scale:.3g}) from "
                    "the plain model; set compile=false"
                )
        log.info("compiled; activations agree with the plain model's")

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        if self._config.precision is Precision.FLOAT32:
            return nullcontext()
        short = torch.bfloat16 if self._config.precision is Precision.BFLOAT16 else torch.float16
        return torch.autocast(self._device.type, dtype=short)

    def _keep(self, name: str, output: Tensor) -> Tensor:
        """Check, reduce and copy what a layer returned; runs inside the hook, on the device."""
        layer = self._layers[name]
        if tuple(output.shape[1:]) != layer.shape:
            raise LayerError(
                f"layers: {name} returned shape {tuple(output.shape[1:])} per sample, "
                f"{layer.shape} "
                "in the dry batch; layers whose shape varies cannot be archived"
            )
        return copied(self._reductions[name](output.detach(), layer.axes), torch.float32)

    def _check_finite(self, name: str, figures: statistics.SampleStatistics, batch: Batch) -> None:
        bad = figures.nonfinite.sum(axis=1)
        if self._config.on_nonfinite is OnNonfinite.RAISE and bad.any():
            row = int(np.argmax(bad > 0))
            raise LayerError(
                f"layers: {name} returned {int(bad[row])} NaN or infinite values for sample "
                f"{batch.start + row}"
            )

    def _cast(self, name: str, activation: Tensor, figures: statistics.SampleStatistics) -> Tensor:
        if not self._half:
            return activation
        limit = torch.finfo(torch.float16).max
        largest = max(float(figures.max.max()), -float(figures.min.min()))
        if largest > limit:
            raise LayerError(
                f"storage.dtype: {name} reaches {largest:.6g}, float16 ends at {limit:.0f}; use "
                "storage.dtype=float32"
            )
        return activation.to(torch.float16)


def largest_relative_error(exact: Tensor, rounded: Tensor) -> float:
    """Return the largest |rounded - exact| / |exact| over the values that float16 holds as normal
    numbers.

    Smaller ones (below 6.1e-5) lose more, down to all of their value.
    """
    normal = exact.abs() >= torch.finfo(torch.float16).smallest_normal
    off = ((rounded.float() - exact).abs() / exact.abs().clamp_min(1e-30))[
        normal & exact.isfinite()
    ]
    return float(off.max()) if off.numel() else 0.0
