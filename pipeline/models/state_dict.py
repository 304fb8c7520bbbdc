"""State dicts: fitted to a module, whatever they were saved in, and their digest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.common.errors import WeightsError, one_line
from pipeline.models.network_fit import choose, fits
from pipeline.models.weight_files import StateDict
from pipeline.models.weight_names import Rename

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)


def state_digest(module: nn.Module) -> str:
    """Return the sha256 over name, dtype, shape and bytes of every parameter and buffer."""
    import torch

    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fit_state_dict(
    module: nn.Module,
    state: StateDict,
    *,
    origin: object,
    strict: bool = True,
    prefix: str | None = None,
    rename: Rename = lambda state: state,
) -> None:
    """Load `state` into `module`: all of it, or (not strict) what fits by name and shape.

    Args:
        module: what is loaded into.
        state: names of a checkpoint → tensors; what is nested is searched too.
        origin: of the state, for messages.
        strict: whether every weight of the module must be there.
        prefix: what is taken off the names; None takes off what makes every name fit.
        rename: applied to the names of every state dict.
    """
    own: dict[str, Tensor] = {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if hasattr(value, "dtype")
    }
    fit = choose(fits(state, own, rename), state, origin, strict=strict, prefix=prefix)
    if fit.network.prefix:
        log.info(
            "model.weights: removed the prefix %r from the names of %s",
            f"{fit.network.prefix}.",
            origin,
        )
    if fit.added:
        log.info("model.weights: added the prefix %r to the names of %s", fit.added, origin)
    weights = StateDict((fit.added + name, value) for name, value in fit.weights.items())
    _check_values(weights, own, origin)
    for name in own:  # torch itself does without them
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, own[name])
    versions = fit.names.versions(fit.network)
    # A file without versions (safetensors) can only be of the present ones.
    weights._metadata = (  # type: ignore[attr-defined]
        {(fit.added + layer).rstrip("."): version for layer, version in versions.items()}
        if versions
        else getattr(module.state_dict(), "_metadata", {})
    )
    try:
        module.load_state_dict(weights, strict=False)
    except Exception as error:
        raise WeightsError(
            f"model.weights: {origin} cannot be loaded: {one_line(error, limit=200)}"
        ) from error


def _check_values(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: object) -> None:
    import torch

    undefined = []
    for name, value in weights.items():
        real = own[name].dtype.is_floating_point
        if value.is_quantized or (real and (value.dtype.itemsize == 1 or value.is_complex())):
            raise WeightsError(
                f"model.weights: {name} in {origin} is {str(value.dtype).removeprefix('torch.')}, "
                f"the model's is {str(own[name].dtype).removeprefix('torch.')}; give the weights "
                "as they were before quantization"
            )
        if value.is_meta:
            raise WeightsError(f"model.weights: {name} in {origin} has a shape, but no values")
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            undefined.append(name)
    if undefined:
        log.warning(
            "model.weights: NaN in %d tensors of %s: %s", len(undefined), origin,
            ", ".join(undefined[:3]),
        )  # fmt: skip
