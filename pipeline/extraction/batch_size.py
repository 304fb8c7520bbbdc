"""Batch size: choose the number of samples per forward pass if the configuration does not.

It depends on shapes, and on a GPU on its memory; never on timing, as values depend on it by
rounding. The manifest records the choice.
"""

import logging
import math
from collections.abc import Sequence

import torch

from pipeline.capture.hooks import forward
from pipeline.capture.resolver import Layer
from pipeline.common.errors import ConfigError
from pipeline.extraction.dummy_forward import ModelTrace, model_failures_named
from pipeline.extraction.settings import Extraction

log = logging.getLogger(__name__)
_ON_A_CPU = (8, 64 * 2**20)  # samples, bytes of selected activations
_ON_A_GPU = (64, 512 * 2**20)


def choose_batch_size(
    config: Extraction, traced: ModelTrace, layers: Sequence[Layer], samples: int
) -> int:
    """Return the configured batch size, or a power of two that suits the device.

    On a GPU, a configured batch must fit into its memory, with no more than all `samples`.
    """
    on_a_cpu, given = traced.device.type == "cpu", config.loader.batch_size
    if given:
        if not on_a_cpu:
            fitting(traced, layers, min(given, samples), halve=False)
        return given
    most, limit = _ON_A_CPU if on_a_cpu else _ON_A_GPU
    sample_bytes = 4 * sum(math.prod(layer.shape) for layer in layers)
    largest = min(most, max(1, limit // sample_bytes))
    size = 1 << (largest.bit_length() - 1)
    return size if on_a_cpu else fitting(traced, layers, size, halve=True)


def fitting(traced: ModelTrace, layers: Sequence[Layer], size: int, *, halve: bool) -> int:
    """Return the largest of `size`, `size / 2`, … whose forward pass fits into device memory."""
    while True:
        one_line_errors = model_failures_named(f"a batch of {size}", but=(torch.OutOfMemoryError,))
        try:
            images = torch.zeros((size, *traced.image_shape), device=traced.device)
            with traced.captured(layers), one_line_errors:
                forward(traced.model.module, images)
            return size
        except torch.OutOfMemoryError as error:
            if not halve or size == 1:
                raise too_large(traced.device, size) from error
            size //= 2
            log.info("the device is out of memory; trying batches of %d", size)


def too_large(device: torch.device, size: int) -> ConfigError:
    """Return the error for a batch that does not fit into device memory."""
    if size == 1:
        advice = "use a smaller model or image size, or device=cpu"
    else:
        advice = f"set loader.batch_size={size // 2} or smaller"
    return ConfigError(
        f"device: {device} is out of memory for a batch of {size}; {advice}. Values differ between "
        "batch sizes by rounding, so an existing archive keeps its own"
    )
