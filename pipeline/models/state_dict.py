"""State dicts: fitted to a module, whatever they were saved in, and their digest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.foundation.errors import WeightsError, one_line, suggestion
from pipeline.models.weight_files import StateDict, keyed
from pipeline.models.weight_names import (
    NamedTensors,
    Network,
    Rename,
    common_prefixes,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
_BOOKKEEPING = ("total_ops", "total_params", "n_averaged")
"""Buffers that thop and `AveragedModel` add to a model: no weights."""


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

    Raises:
        WeightsError: naming what is missing, left over or of another shape; or the networks,
            where several fit.
    """
    own: dict[str, Tensor] = {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if hasattr(value, "dtype")
    }
    fits = _fits(state, own, rename)
    fit = _choose(fits, state, origin, strict=strict, prefix=prefix)
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


@dataclass
class _Fit:
    """How a network of a checkpoint fits the model.

    Attributes:
        network: of the checkpoint.
        names: all of the checkpoint.
        added: the prefix that the model's names have and the checkpoint's lack.
        weights: those that fit, by the model's names without that prefix.
        missing: names that the network does not have.
        shapes: sentences about tensors of other shapes.
    """

    network: Network
    names: NamedTensors
    added: str
    weights: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.missing and not self.shapes


def _fits(state: StateDict, own: Mapping[str, Tensor], rename: Rename) -> list[_Fit]:
    """Return how the networks of a checkpoint fit: those that do, or else the nearest ones."""
    fits = []
    for added in common_prefixes(own)[:4]:
        short = {name.removeprefix(added): tensor for name, tensor in own.items()}
        names = NamedTensors(state, short, rename)
        found = names.networks()
        most = max((len(network.weights) for network in found), default=0)
        fits += [
            _fit(network, names, short, added)
            for network in found
            if 2 * len(network.weights) >= most and not (added and network.prefix)
        ]
        if complete := [fit for fit in fits if fit.complete]:
            return complete
    return fits


def _fit(network: Network, names: NamedTensors, own: Mapping[str, Tensor], added: str) -> _Fit:
    """Compare names and shapes."""
    from torch.nn.parameter import is_lazy

    tied: dict[int, list[str]] = {}
    for name, tensor in own.items():
        tied.setdefault(id(tensor), []).append(name)
    fit = _Fit(network, names, added)
    for name, tensor in own.items():
        same = [other for other in (name, *tied[id(tensor)]) if other in network.weights]
        if not same:
            if not name.endswith("num_batches_tracked"):
                fit.missing.append(name)
            continue
        value = network.weights[same[0]]
        scalar = value.shape == (1,) and not is_lazy(tensor) and tensor.ndim == 0  # torch 0.3
        if is_lazy(tensor) or value.shape == tensor.shape or scalar:
            fit.weights[name] = value
        else:
            fit.shapes.append(
                f"{name} is {tuple(value.shape)}, the model's is {tuple(tensor.shape)}"
            )
    return fit


def _choose(
    fits: list[_Fit], state: StateDict, origin: object, *, strict: bool, prefix: str | None
) -> _Fit:
    """Return the one network that fits, or (not strict) fits best.

    Raises:
        WeightsError: when none does, or several with different values.
    """
    complete = [fit.network for fit in fits if fit.complete]
    prefixes = [fit.network.prefix for fit in fits]
    if prefix is not None:
        chosen = [fit.names.clean(prefix.rstrip(".")) for fit in fits]
        fits = [fit for fit, name in zip(fits, chosen, strict=True) if fit.network.prefix == name]
    most = max((len(fit.weights) for fit in fits), default=0)
    if not most and prefix is not None and any(prefixes):
        raise WeightsError(
            f"model.prefix: no weights of the model in {origin} have the prefix {prefix!r}; "
            f"{suggestion(prefix, filter(None, prefixes))}"
        )
    if not most:
        parts = {key: [n for n, value in part.items() if not isinstance(value, dict)]
                 for key, part in keyed(state).items()}  # fmt: skip
        keys = [f"model.key={key}" for key, names in parts.items() if key and names]
        names = [name for part in parts.values() for name in part]
        raise WeightsError(
            f"model.weights: nothing in {origin} fits the model; it holds {', '.join(names[:3])}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            + (f", under {' or '.join(keys[:6])}" if keys else "")
        )
    best = [fit for fit in fits if len(fit.weights) == most]
    different = [best[0]]
    for fit in best[1:]:
        if not any(_equal(fit, other) for other in different):
            different.append(fit)
    options = _options([fit.network for fit in different])
    if len(different) > 1 and all(options) and (best[0].complete or not strict):
        raise WeightsError(
            f"model.weights: {origin} has {len(different)} networks that fit the model; choose one "
            f"with {' or '.join(options[:6])}"
        )
    fit = different[options.index("")] if "" in options else different[0]
    extra = [
        name
        for name in fit.names.unused(fit.network, complete)
        if name.rpartition(".")[2] not in _BOOKKEEPING
    ]
    faults = [
        f"{label}: {', '.join(names[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for label, names in (
            ("missing", fit.missing),
            ("not in the model", extra),
            ("shapes differ", fit.shapes),
        )
        if names
    ]
    if not faults:
        return fit
    count = f"{len(fit.weights)} of {len(fit.weights) + len(fit.missing) + len(fit.shapes)}"
    if strict:
        near = (
            f"; with {' or '.join(options[:6])} {count} weights would fit" if all(options) else ""
        )
        raise WeightsError(
            f"model.weights: {origin} does not fit the model; {'; '.join(faults)}{near}"
        )
    log.warning("model.weights: %s tensors loaded; %s", count, "; ".join(faults))
    return fit


def _options(found: list[Network]) -> list[str]:
    """Return what chooses each of several networks; empty for one without a key and a prefix."""
    by_key = len({network.key for network in found}) == len(found)
    by_prefix = len({network.prefix for network in found}) == len(found)

    def option(network: Network) -> str:
        if by_key and network.key:
            return f"model.key={network.key}"
        if by_key or by_prefix:
            return f"model.prefix={network.prefix}" if network.prefix or not by_key else ""
        return f"model.key={network.key} model.prefix={network.prefix}"

    return [option(network) for network in found]


def _equal(one: _Fit, other: _Fit) -> bool:
    import torch

    return all(
        torch.equal(value, other.weights[name]) if name in other.weights else False
        for name, value in one.weights.items()
    )


def _check_values(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: object) -> None:
    """Refuse tensors that are no values of the model's, and warn of NaN.

    Raises:
        WeightsError: when weights are quantized, complex or without values.
    """
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
