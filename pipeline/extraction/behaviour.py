"""Behaviour: what a model does, as a manifest can hold it.

Weights and a class name do not tell a model from its edited self, nor from what another version of
a library makes of it. What its layers return for a fixed image does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.extraction.model_trace import ModelTrace, dry_batch
from pipeline.layers.capture import capture, copied, forward
from pipeline.layers.selection import Layer

_VALUES = 16


def behaviour(traced: ModelTrace, layers: Sequence[Layer], *, seed: int) -> dict[str, Any]:
    """Return what every selected layer returns for the first image of the dry batch.

    On one thread, so that the digests do not depend on the number of cores.

    Args:
        traced: the model on its device.
        layers: the selected ones.
        seed: of a model that draws random numbers.

    Returns:
        Layer → `sha256` of its float32 values; and for comparisons with other machines, where
        rounding differs: `largest` magnitude, `mean`, `std`, and `values`, 16 of them at even
        distances. Values that are not finite count as 0 in these.
    """
    names = [layer.name for layer in layers]
    images = dry_batch(traced.model, traced.device, traced.image_shape)[:1]
    with (
        _one_thread(),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(),
        capture(
            traced.model.module,
            names,
            process=lambda _name, output: copied(output, torch.float32),
            stop_after=len(names),
        ) as found,
    ):
        torch.manual_seed(seed)
        forward(traced.model.module, images)
    return {name: _described(next(iter(found.calls(name).values()))) for name in names}


def _described(activation: Tensor) -> dict[str, Any]:
    values = activation.cpu().contiguous().flatten()
    finite = values.nan_to_num(0, 0, 0).double()
    places = torch.linspace(0, len(values) - 1, min(_VALUES, len(values))).long()
    return {
        "sha256": hashlib.sha256(values.numpy().data).hexdigest(),
        "largest": float(finite.abs().max()) if len(values) else 0.0,
        "mean": float(finite.mean()) if len(values) else 0.0,
        "std": float(finite.std(correction=0)) if len(values) else 0.0,
        "values": [float(f"{value:.9g}") for value in finite[places].tolist()],
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
