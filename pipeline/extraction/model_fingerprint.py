"""Model fingerprint: digests and summaries of a model's activations for a fixed image.

Weights and a class name do not distinguish a model from an edited copy, or from the same model
under another library version. Its activations do.
"""

import hashlib
import logging
import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.capture.axes import ATTENTION
from pipeline.capture.hooks import copied, forward
from pipeline.capture.resolver import Layer
from pipeline.capture.selector import MARK
from pipeline.common.errors import LayerError, listed
from pipeline.extraction.dummy_forward import ModelTrace, dummy_batch, model_failures_named

log = logging.getLogger(__name__)
_VALUES = 16
_ROUNDING, _SHORT_ROUNDING = 1e-3, 5e-2  # of the largest magnitude


def of_first_image(traced: ModelTrace, layers: Sequence[Layer], *, seed: int) -> dict[str, Tensor]:
    """Return every selected layer's float32 activation for the first image of the dummy batch.

    Computed on one thread, so that the digests do not depend on the number of cores.
    """
    image = dummy_batch(traced.model, traced.device, traced.image_shape)[:1]
    with _one_thread():
        rows, drawn = first_rows(traced, layers, image, seed=seed)
    if drawn:
        log.warning(
            "layers: the model draws random numbers, so the same image may give different values "
            "in %s", listed([*rows]),
        )  # fmt: skip
    return rows


def first_rows(
    traced: ModelTrace, layers: Sequence[Layer], images: Tensor, *, seed: int | None = None
) -> tuple[dict[str, Tensor], bool]:
    """Return every layer's float32 activations for the first image, alone or `beside_others`, and
    whether random numbers were drawn.
    """
    by_name = {layer.name: layer for layer in layers}
    first = int(len(images) > 1)  # not inside what torch.compile traces

    def rows(name: str, output: Tensor) -> Tensor:
        return copied(by_name[name].rows(output)[first::2], torch.float32)

    failures = model_failures_named("a single image" if len(images) == 1 else "the dummy batch")
    with traced.captured(layers, rows, seed=seed) as captured, failures:
        before = random_state(traced.device)
        forward(traced.model.module, images)
        drawn = before != random_state(traced.device)
        return {name: captured[name].cpu() for name in by_name}, drawn


def random_state(device: torch.device) -> bytes:
    """Return the states of all global generators of random numbers."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    arrays = [state.numpy() for state in states]  # pickled tensors differ by their addresses
    return pickle.dumps([arrays, random.getstate(), np.random.get_state()])  # noqa: NPY002


def beside_others(traced: ModelTrace) -> Tensor:
    """Return a batch with the first image of the dummy batch as second and fourth.

    If a model reverses or sorts its batch, another image comes to one of these rows.
    """
    return dummy_batch(traced.model, traced.device, traced.image_shape)[[1, 0, 2, 0]]


def warn_of_dependence(
    traced: ModelTrace, layers: Sequence[Layer], alone: Mapping[str, Tensor]
) -> None:
    """Log a warning where activations beside others differ from those `alone` beyond rounding.

    Raises:
        LayerError: for attention weights, if no random numbers were drawn: a model that joins heads
            and samples in one axis may put the heads first, and the weights do not show it.
    """
    beside, drawn = first_rows(traced, layers, beside_others(traced))
    unsteady = [
        layer.name
        for layer in layers
        if not close(alone[layer.name], beside[layer.name], _rounding(layer))
    ]
    calls = [layer.name for layer in layers if MARK in layer.name and layer.axes.names == ATTENTION]
    if not drawn and (mixed := [name for name in calls if name in unsteady]):
        raise LayerError(
            f"layers: {listed(mixed)}: the first image's attention changes with the other images "
            "of its batch; the model may put heads before samples, which cannot be captured: leave "
            "it out with layers.exclude"
        )
    if unsteady:
        log.warning(
            "layers: the same image gives different values in another batch, in %s: the model's "
            "outputs depend on the rest of the batch, on random numbers or on earlier inputs; if "
            "its forward must run to the end, set early_stop=false",
            listed(unsteady),
        )


def close(one: Tensor, other: Tensor, rounding: float = _ROUNDING) -> bool:
    """Return whether activations differ by at most a share of the largest magnitude of `one`.

    Several samples of `other` may be compared with a single one.
    """
    scale = float(one.nan_to_num(0, 0, 0).abs().max())
    # torch 2.6 compares only if the larger tensor is the first.
    return one.shape[1:] == other.shape[1:] and torch.allclose(
        other, one, rtol=0, atol=scale * rounding, equal_nan=True
    )


def _rounding(layer: Layer) -> float:
    return _ROUNDING if layer.source_dtype in ("float32", "float64") else _SHORT_ROUNDING


def fingerprint_of(activation: Tensor) -> dict[str, Any]:
    """Return the fingerprint of one layer's activation.

    Returns:
        `sha256` of the float32 values; and for comparison across machines, where rounding differs:
        `largest` magnitude, `mean`, `std` and 16 evenly spaced `values`. Non-finite values count as
        0 in these.
    """
    values = activation.contiguous().flatten()
    finite = values.nan_to_num(0, 0, 0).double().numpy()  # torch's sums depend on its threads
    positions = np.linspace(0, len(values) - 1, min(_VALUES, len(values))).astype(np.int64)
    return {
        "sha256": hashlib.sha256(values.numpy().data).hexdigest(),
        "largest": float(np.abs(finite).max()),
        "mean": float(finite.mean()),
        "std": float(finite.std()),
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
