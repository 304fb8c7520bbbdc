"""Choice of the network in a checkpoint that a model loads."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pipeline.common.errors import WeightsError, listed, suggestion
from pipeline.models.weights.files import StateDict, keyed
from pipeline.models.weights.names import NamedTensors, Network, Rename, common_prefixes

log = logging.getLogger(__name__)
_BOOKKEEPING = ("total_ops", "total_params", "n_averaged")
"""Buffers that thop and `AveragedModel` add to a model; they are not weights."""


@dataclass
class NetworkFit:
    """The fit of a checkpoint's network to the model."""

    network: Network
    names: NamedTensors
    added: str  # prefix that only the model's names have
    weights: dict[str, Tensor] = field(default_factory=dict)  # by names without that prefix
    missing: list[str] = field(default_factory=list)  # names that the network lacks
    shapes: list[str] = field(default_factory=list)  # descriptions of tensors of another shape

    @property
    def complete(self) -> bool:
        """Whether all tensors are present with the right shapes."""
        return not self.missing and not self.shapes


def fits(state: StateDict, tensors: Mapping[str, Tensor], rename: Rename) -> list[NetworkFit]:
    """Return the networks of a checkpoint that fit completely, or else all candidates."""
    candidates: list[NetworkFit] = []
    for added in common_prefixes(tensors)[:4]:
        short = {name.removeprefix(added): tensor for name, tensor in tensors.items()}
        names = NamedTensors(state, short, rename)
        networks = names.networks()
        largest = max((len(network.weights) for network in networks), default=0)
        candidates += [
            _fit(network, names, short, added)
            for network in networks
            if 2 * len(network.weights) >= largest and not (added and network.prefix)
        ]
        if complete := [fit for fit in candidates if fit.complete]:
            return complete
    return candidates


def _fit(
    network: Network, names: NamedTensors, tensors: Mapping[str, Tensor], added: str
) -> NetworkFit:
    tied: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        tied.setdefault(id(tensor), []).append(name)
    fit = NetworkFit(network, names, added)
    for name, tensor in tensors.items():
        aliases = [alias for alias in (name, *tied[id(tensor)]) if alias in network.weights]
        if not aliases:
            if not name.endswith("num_batches_tracked"):
                fit.missing.append(name)
            continue
        value = network.weights[aliases[0]]
        scalar = value.shape == (1,) and not is_lazy(tensor) and tensor.ndim == 0  # torch 0.3
        if is_lazy(tensor) or value.shape == tensor.shape or scalar:
            fit.weights[name] = value
        else:
            fit.shapes.append(f"{name} is {tuple(value.shape)}, in the model {tuple(tensor.shape)}")
    return fit


def choose(
    fits: list[NetworkFit], state: StateDict, origin: object, *, strict: bool, prefix: str | None
) -> NetworkFit:
    """Return the only network that fits, or with `strict=False` the best fit."""
    complete = [fit.network for fit in fits if fit.complete]
    prefixes = [fit.network.prefix for fit in fits]
    if prefix is not None:
        cleaned = [fit.names.clean(prefix.rstrip(".")) for fit in fits]
        fits = [fit for fit, name in zip(fits, cleaned, strict=True) if fit.network.prefix == name]
    # In strict mode, matching names with other shapes count, so that the error lists the shapes.
    sizes = [(len(fit.weights), strict * len(fit.shapes)) for fit in fits]
    largest = max(sizes, default=(0, 0))
    if not any(largest) and prefix is not None and any(prefixes):
        raise WeightsError(
            f"model.prefix: no weights of the model in {origin} have the prefix {prefix!r}; "
            f"{suggestion(prefix, filter(None, prefixes))}"
        )
    if not any(largest):
        parts = {key: [n for n, value in part.items() if not isinstance(value, dict)]
                 for key, part in keyed(state).items()}  # fmt: skip
        keys = [f"model.key={key}" for key, names in parts.items() if key and names]
        names = [name for part in parts.values() for name in part]
        raise WeightsError(
            f"model.weights: nothing in {origin} fits the model; the file contains {listed(names)}"
            + (f", under {' or '.join(keys[:6])}" if keys else "")
        )
    best = [fit for fit, size in zip(fits, sizes, strict=True) if size == largest]
    different = [best[0]]
    for fit in best[1:]:
        if not any(_equal(fit, other) for other in different):
            different.append(fit)
    options = _options([fit.network for fit in different])
    if len(different) > 1 and all(options) and (best[0].complete or not strict):
        raise WeightsError(
            f"model.weights: {origin} has {len(different)} networks that fit the model; set "
            f"{' or '.join(options[:6])}"
        )
    fit = different[options.index("")] if "" in options else different[0]
    extra = [
        name
        for name in fit.names.unused(fit.network, complete)
        if name.rpartition(".")[2] not in _BOOKKEEPING
    ]
    faults = [
        f"{label}: {listed(names)}"
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
        where = f" with {' or '.join(options[:6])}" if all(options) else ""
        raise WeightsError(
            f"model.weights: {origin} does not fit the model (tensors that do{where}: {count}); "
            f"{'; '.join(faults)}"
        )
    log.warning("model.weights: loaded %s tensors; %s", count, "; ".join(faults))
    return fit


def _options(networks: list[Network]) -> list[str]:
    """Return the option that selects each network; empty for one without a key and a prefix."""
    by_key = len({network.key for network in networks}) == len(networks)
    by_prefix = len({network.prefix for network in networks}) == len(networks)

    def option(network: Network) -> str:
        if by_key and network.key:
            return f"model.key={network.key}"
        if by_key or by_prefix:
            return f"model.prefix={network.prefix}" if network.prefix or not by_key else ""
        return f"model.key={network.key} model.prefix={network.prefix}"

    return [option(network) for network in networks]


def _equal(one: NetworkFit, other: NetworkFit) -> bool:
    return all(
        torch.equal(value, other.weights[name]) if name in other.weights else False
        for name, value in one.weights.items()
    )
