"""Fit of a checkpoint to a model: find the networks in it, and choose the one to load."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from os.path import commonprefix

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pipeline.common.errors import WeightsError, listed, suggestion
from pipeline.models.weights.files import StateDict, keyed

log = logging.getLogger(__name__)
_WRAPPERS = ("_orig_mod", "module")
"""Name components that torch.compile and DataParallel insert."""
_BOOKKEEPING = ("total_ops", "total_params", "n_averaged")
"""Buffers that thop and `AveragedModel` add to a model; they are not weights."""

Rename = Callable[[str], str]
"""Maps a name in a file to the model's name."""


@dataclass
class Network:
    """Tensors of a checkpoint under one path that have names of the model."""

    path: str  # before the model's names: nested keys and prefix, without wrapper components
    prefix: str  # the part of the path that belongs to the names, not to the keys
    added: str  # prefix that only the model's names have; the names below are without it
    keys: set[str] = field(default_factory=set)  # of the state dicts that contain the tensors
    found: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)  # those that fit
    missing: list[str] = field(default_factory=list)  # names that the network lacks
    shapes: list[str] = field(default_factory=list)  # descriptions of tensors of another shape

    @property
    def complete(self) -> bool:
        """Whether all tensors are present with the right shapes."""
        return not self.missing and not self.shapes

    def compare(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill in `weights`, `missing` and `shapes`; tied tensors may have either name."""
        tied: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            tied.setdefault(id(tensor), []).append(name)
        for name, tensor in tensors.items():
            aliases = [alias for alias in (name, *tied[id(tensor)]) if alias in self.found]
            if not aliases:
                if not name.endswith("num_batches_tracked"):
                    self.missing.append(name)
                continue
            value = self.found[aliases[0]]
            scalar = value.shape == (1,) and not is_lazy(tensor) and tensor.ndim == 0  # torch 0.3
            if is_lazy(tensor) or value.shape == tensor.shape or scalar:
                self.weights[name] = value
            else:
                shapes = f"{tuple(value.shape)}, in the model {tuple(tensor.shape)}"
                self.shapes.append(f"{name} is {shapes}")

    def equals(self, other: "Network") -> bool:
        """Return whether the other network has all weights of this one."""
        return all(
            name in other.weights and torch.equal(value, other.weights[name])
            for name, value in self.weights.items()
        )


class Checkpoint:
    """The tensors of a file by their paths, and the networks that they form.

    A path consists of nested keys and a name, without wrapper components that the model lacks.
    """

    def __init__(self, state: StateDict, tensors: Mapping[str, Tensor], rename: Rename) -> None:
        """Find the networks that fit the model's `tensors` completely, or else all candidates."""
        self._wrappers = {*_WRAPPERS} - {part for name in tensors for part in name.split(".")}
        self._parts = keyed(state)
        self.entries = [
            (key, self.clean(f"{key}.{rename(name)}"), tensor)
            for key, part in self._parts.items()
            for name, tensor in part.items()
            if not isinstance(tensor, dict)
        ]
        self.networks: list[Network] = []
        for added in common_prefixes(tensors)[:4]:
            short = {name.removeprefix(added): tensor for name, tensor in tensors.items()}
            networks = self._networks(short, added)
            largest = max((len(network.found) for network in networks), default=0)
            for network in networks:
                if 2 * len(network.found) >= largest and not (added and network.prefix):
                    network.compare(short)
                    self.networks.append(network)
            if complete := [network for network in self.networks if network.complete]:
                self.networks = complete
                return

    def clean(self, path: str) -> str:
        """Return a path without empty components and wrapper components."""
        parts = path.split(".")
        return ".".join(part for part in parts if part and part not in self._wrappers)

    def _networks(self, names: Collection[str], added: str) -> list[Network]:
        """Return a network for every path before the model's names."""
        networks: dict[str, Network] = {}
        for key, entry, tensor in self.entries:
            parts = entry.split(".")
            for start in range(len(parts)):
                name, path = ".".join(parts[start:]), ".".join(parts[:start])
                if name not in names:
                    continue
                prefix = path[len(self.clean(key)) :].lstrip(".")
                network = networks.setdefault(path, Network(path, prefix, added))
                other = network.found.setdefault(name, tensor)
                if other is not tensor and not torch.equal(other, tensor):
                    raise WeightsError(
                        f"model.weights: the file has two values of {name}, whose names differ "
                        f"only by {' or '.join(_WRAPPERS)}; save one network alone"
                    )
                network.keys.add(key)
        return list(networks.values())

    def unused(self, network: Network, names: Iterable[str]) -> list[str]:
        """Return the names under the network's path that belong to no network."""
        start = _start(network.path)
        inside = (_start(n.path) for n in self.networks if n.complete and n is not network)
        elsewhere = tuple(path for path in inside if path.startswith(start))
        own = {name.removeprefix(network.added) for name in names}
        under = (
            path.removeprefix(start)
            for key, path, _ in self.entries
            if key in network.keys and path.startswith(start) and not path.startswith(elsewhere)
        )
        return [name for name in under if name not in own]

    def versions(self, network: Network) -> dict[str, object]:
        """Return layer → version of its class, from torch's metadata."""
        start = _start(network.path)
        versions = {
            f"{self.clean(f'{key}.{layer}')}.": version
            for key in network.keys
            for layer, version in getattr(self._parts[key], "_metadata", {}).items()
        }
        return {
            (network.added + path.removeprefix(start)).rstrip("."): version
            for path, version in versions.items()
            if path.startswith(start)
        }

    def choose(
        self, names: Iterable[str], origin: object, *, strict: bool, prefix: str | None
    ) -> Network:
        """Return the only network that fits, or with `strict=False` the best fit."""
        networks = self.networks
        if prefix is not None:
            wanted = self.clean(prefix)
            networks = [n for n in networks if n.path == wanted] or [
                n for n in networks if n.prefix == wanted
            ]
        # In strict mode, matching names with other shapes count, so that the error lists the shapes
        sizes = [(len(network.weights), strict * len(network.shapes)) for network in networks]
        largest = max(sizes, default=(0, 0))
        if not any(largest):
            if prefix is not None and (prefixes := [n.path for n in self.networks if n.path]):
                raise WeightsError(
                    f"model.prefix: no weights of the model in {origin} have the prefix "
                    f"{prefix!r}; {suggestion(prefix, prefixes)}"
                )
            names = [path for _, path, _ in self.entries]
            raise WeightsError(
                f"model.weights: nothing in {origin} fits the model; the file contains "
                f"{listed(names)}"
            )
        best = [network for network, size in zip(networks, sizes, strict=True) if size == largest]
        different = [best[0]]
        for network in best[1:]:
            if not any(network.equals(other) for other in different):
                different.append(network)
        # beside a network without keys, nested ones are copies, such as averages
        different = [network for network in different if "" in network.keys] or different
        paths = [network.prefix for network in different]
        if len({*paths}) < len(paths) or not any(paths):
            paths = [network.path for network in different]
        options = " or ".join(f"model.prefix={path}" for path in paths[:6])
        network = different[0]
        if len(different) > 1 and (network.complete or not strict):
            raise WeightsError(
                f"model.weights: {origin} has {len(different)} networks that fit the model; set "
                f"{options}"
            )
        extra = [
            name
            for name in self.unused(network, names)
            if name.rpartition(".")[2] not in _BOOKKEEPING
        ]
        faults = "; ".join(
            f"{label}: {listed(faulty)}"
            for label, faulty in (
                ("missing", network.missing),
                ("not in the model", extra),
                ("shapes differ", network.shapes),
            )
            if faulty
        )
        total = len(network.weights) + len(network.missing) + len(network.shapes)
        count = f"{len(network.weights)} of {total}"
        if faults and strict:
            where = f" with {options}" if any(paths) else ""
            raise WeightsError(
                f"model.weights: {origin} does not fit the model (tensors that do{where}: "
                f"{count}); {faults}"
            )
        if faults:
            log.warning("model.weights: loaded %s tensors; %s", count, faults)
        return network


def _start(path: str) -> str:
    return f"{path}." if path else ""


def common_prefixes(names: Collection[str]) -> list[str]:
    """Return the common prefixes of all names, the shortest first.

    >>> common_prefixes(["net.a.weight", "net.a.bias"])
    ['', 'net.', 'net.a.']
    """
    shared = commonprefix([name.split(".")[:-1] for name in names])  # noqa: RUF071 - of lists
    return ["".join(f"{part}." for part in shared[:n]) for n in range(len(shared) + 1)]
