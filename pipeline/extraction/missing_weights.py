"""Missing weights: find layers that depend on parameters missing in the weights file.

Names and execution order do not show this: a new head changes nothing before or beside it. So the
dummy batch runs again with NaN, and then with other numbers, in place of these parameters. Layers
whose output changes depend on them. NaN alone could be lost in a comparison or a top-k.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from pipeline.capture.hooks import forward
from pipeline.capture.resolver import Layer
from pipeline.common.errors import LayerError, listed
from pipeline.extraction.dummy_forward import ModelTrace, dummy_batch

log = logging.getLogger(__name__)
_ROUNDING = 1e-5  # of the sum of magnitudes
_MOST_TESTED_SINGLY = 16


def refuse_random_layers(traced: ModelTrace, layers: Sequence[Layer], *, seed: int) -> None:
    """Raise LayerError if selected layers depend on missing parameters.

    With `model.allow_random`, log a warning instead.
    """
    if not traced.model.missing_keys:
        return
    state: dict[str, Tensor] = traced.model.module.state_dict(keep_vars=True)
    missing = {  # integers (counters, indices) are constants
        name: state[name]
        for name in traced.model.missing_keys
        if name in state and (state[name].is_floating_point() or state[name].is_complex())
    }
    if not missing:
        return
    before = _summaries(traced, layers, seed)

    def changed(tensors: Mapping[str, Tensor], *, nan: bool) -> set[str]:
        """Return the layers whose output changes with other values of these tensors."""
        with _overwritten(traced.model.module, tensors, nan=nan):
            after = _summaries(traced, layers, seed)
        return {name for name, summary in before.items() if _differ(summary, after.get(name))}

    unsteady = changed({}, nan=False)
    changes = changed(missing, nan=True) | (changed(missing, nan=False) - unsteady)
    dependent = [name for name in before if name in changes]
    if not dependent:
        return
    parameters = []
    if len(missing) <= _MOST_TESTED_SINGLY:
        parameters = [n for n, x in missing.items() if changed({n: x}, nan=True) & changes]
    text = (
        f"{listed(dependent)} {'depends' if len(dependent) == 1 else 'depend'} on "
        f"{listed(parameters or list(missing))}, which did not come from the weights file"
    )
    if traced.config.model.allow_random:
        log.warning("layers: %s; these activations are random", text)
        return
    raise LayerError(
        f"layers: {text}: these activations would be random. Select other layers, or set "
        "model.allow_random=true"
    )


def _summaries(traced: ModelTrace, layers: Sequence[Layer], seed: int) -> dict[str, Tensor]:
    """Return a summary of the values of every layer that is reached."""
    images = dummy_batch(traced.model, traced.device, traced.image_shape)
    with traced.captured(layers, _summary, seed=seed) as activations:
        # A model may reject NaN: layers that it then does not reach depend on it.
        with suppress(Exception):
            forward(traced.model.module, images)
        reached = {layer.name: activations.calls(layer.name) for layer in layers}
    return {name: next(iter(calls.values())).cpu() for name, calls in reached.items() if calls}


def _summary(_name: str, output: Tensor) -> Tensor:
    """Return the number of NaN, the sum of the values and the sum of their magnitudes."""
    values = output.detach().float()
    return torch.stack([values.isnan().sum(), values.nansum(), values.abs().nansum()])


def _differ(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one[0] != other[0]:
        return True
    tolerance = _ROUNDING * float(one[2])
    return not torch.allclose(one[1:], other[1:], rtol=0, atol=tolerance, equal_nan=True)


@contextmanager
def _overwritten(module: nn.Module, tensors: Mapping[str, Tensor], *, nan: bool) -> Iterator[None]:
    originals = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    try:
        for tensor, _ in originals:
            if nan:
                tensor.detach().fill_(float("nan"))
            else:
                tensor.detach().normal_(generator=torch.Generator(tensor.device).manual_seed(0))
        _clear_caches(module)
        yield
    finally:
        for tensor, values in originals:
            tensor.detach().copy_(values)
        _clear_caches(module)


def _clear_caches(module: nn.Module) -> None:
    """Clear values that a model caches from its parameters (LeViT caches its biases)."""
    try:
        module.train()
    finally:
        module.eval()
