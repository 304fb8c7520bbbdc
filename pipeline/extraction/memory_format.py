"""Memory format: decide whether a model runs in the channels-last format.

It makes convolutions faster on CPUs (1.2 to 2 times in most families, never slower: see
`scripts/README.md`) and on GPUs in half precision. Values differ by rounding, so the choice depends
only on the configuration and the model, never on timing.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.capture.resolver import Layer
from pipeline.common.errors import ConfigError, one_line
from pipeline.extraction.dummy_forward import ModelTrace
from pipeline.extraction.model_fingerprint import beside_others, close, first_rows
from pipeline.extraction.settings import Precision

log = logging.getLogger(__name__)


@contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """Keep a module's weights in the channels-last format while the block runs."""
    before = [(parameter, parameter.data) for parameter in module.parameters()]
    for parameter, data in before:
        if data.ndim == 4:
            parameter.data = data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


def may_help(module: nn.Module, device: torch.device, precision: Precision) -> bool:
    """Return whether the channels-last format is worth trying."""
    has_convolutions = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    fast = device.type == "cpu" or (device.type == "cuda" and precision != "float32")
    return has_convolutions and fast


def agrees(traced: ModelTrace, layers: Sequence[Layer], expected: Mapping[str, Tensor]) -> bool:
    """Return whether a model's activations are the same in both formats, up to rounding.

    `expected`, of the first image, is compared with the image beside others, so a model that agrees
    is also independent of them.
    """
    images = beside_others(traced).contiguous(memory_format=torch.channels_last)
    try:
        with channels_last(traced.model.module):
            last, _ = first_rows(traced, layers, images)
    except ConfigError as error:  # a `view` of a tensor that is no longer contiguous
        log.info("the model does not run channels-last (%s)", one_line(error, limit=120))
        return False
    for name, plain in expected.items():
        if not close(plain, last[name]):
            log.info("%s differs in the channels-last format; using the default format", name)
            return False
    return True
