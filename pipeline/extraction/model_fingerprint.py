"""Model fingerprint: digests and summaries of a model's activations for a fixed image.

Weights and a class name do not distinguish a model from an edited copy, or from the same model
under another library version. Its activations do.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.capture.activations import Activations
from pipeline.capture.hooks import Process, copied, forward
from pipeline.capture.resolver import Layer
from pipeline.extraction.dummy_forward import ModelTrace, dummy_batch, model_failures_named

log = logging.getLogger(__name__)
_VALUES = 16
_ROUNDING, _SHORT_ROUNDING = 1e-3, 5e-2  # of the largest magnitude


def of_first_image(traced: ModelTrace, layers: Sequence[Layer], *, seed: int) -> dict[str, Tensor]:
    """Return every selected layer's float32 activation for the first image of the dummy batch.

    Computed on one thread, so that the digests do not depend on the number of cores.
    """
    image = dummy_batch(traced.model, traced.device, traced.image_shape)[:1]
    with traced.captured(layers, first_row(layers), seed=seed) as captured, _one_thread():
        return _activations(captured, traced, image, layers)


def warn_of_dependence(
    traced: ModelTrace, layers: Sequence[Layer], alone: Mapping[str, Tensor]
) -> None:
    """Log a warning where the first image's activations differ beyond rounding beside others.

    Args:
        traced: the model on its device.
        layers: the selected layers.
        alone: see `of_first_image`.
    """
    images = dummy_batch(traced.model, traced.device, traced.image_shape)
    with traced.captured(layers, first_row(layers)) as captured:
        beside = _activations(captured, traced, images, layers)
    unsteady = [layer.name for layer in layers if not _close(layer, alone, beside)]
    if unsteady:
        log.warning(
            "layers: the same image gives different values in another batch, in %s%s: the model's "
            "outputs depend on the rest of the batch, on random numbers or on earlier inputs",
            ", ".join(unsteady[:3]), f" and {len(unsteady) - 3} more" if unsteady[3:] else "",
        )  # fmt: skip


def first_row(layers: Sequence[Layer]) -> Process:
    """Return a `process` for `capture` that keeps the first image's row, in float32."""
    by_name = {layer.name: layer for layer in layers}
    return lambda name, output: copied(by_name[name].rows(output)[:1], torch.float32)


def _activations(
    captured: Activations, traced: ModelTrace, images: Tensor, layers: Sequence[Layer]
) -> dict[str, Tensor]:
    what = "a single image" if len(images) == 1 else "the dummy batch"
    with model_failures_named(what):
        forward(traced.model.module, images)
    return {layer.name: next(iter(captured.calls(layer.name).values())).cpu() for layer in layers}


def _close(layer: Layer, one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Return whether two activations of a layer differ only by rounding."""
    a, b = (values[layer.name].nan_to_num(0, 0, 0) for values in (one, two))
    share = _ROUNDING if layer.source_dtype in ("float32", "float64") else _SHORT_ROUNDING
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    return bool((a - b).abs().max() <= share * a.abs().max())


def fingerprint_of(activation: Tensor) -> dict[str, Any]:
    """Return the fingerprint of one layer's activation.

    Returns:
        `sha256` of the float32 values; and for comparison across machines, where rounding differs:
        `largest` magnitude, `mean`, `std` and 16 evenly spaced `values`. Non-finite values count as
        0 in these.
    """
    values = activation.contiguous().flatten()
    finite = values.nan_to_num(0, 0, 0).double()
    positions = torch.linspace(0, len(values) - 1, min(_VALUES, len(values))).long()
    return {
        "sha256": hashlib.sha256(values.numpy().data).hexdigest(),
        "largest": float(finite.abs().max()) if len(values) else 0.0,
        "mean": float(finite.mean()) if len(values) else 0.0,
        "std": float(finite.std(correction=0)) if len(values) else 0.0,
        "values": [float(f"{value:.9g}") for value in finite[positions].tolist()],
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
