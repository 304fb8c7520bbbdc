"""Weight names: find the networks in a checkpoint whose names match a model."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.common.errors import WeightsError
from pipeline.models.weights.files import StateDict, keyed

_WRAPPERS = ("_orig_mod", "module")
"""Name components that torch.compile and DataParallel insert."""

Rename = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""Maps a state dict with a file's names to one with the model's names."""


@dataclass
class Network:
    """Tensors of a checkpoint under one prefix that have names of the model."""

    key: str  # of their state dict, `.` between nested keys
    prefix: str  # before the model's names
    path: str  # key and prefix, without wrapper components
    weights: dict[str, Tensor] = field(default_factory=dict)  # by the model's names
    sources: set[str] = field(default_factory=set)  # keys of the state dicts that contain them


class NamedTensors:
    """The tensors of a checkpoint by name, each state dict renamed, without wrapper components."""

    def __init__(self, state: StateDict, model_names: Collection[str], rename: Rename) -> None:
        self._own = model_names
        self._parts = keyed(state)
        self.clean = without_wrappers(model_names)
        self._entries = [
            (key, self.clean(name), tensor)
            for key, part in self._parts.items()
            for name, tensor in rename(
                {name: value for name, value in part.items() if not isinstance(value, dict)}
            ).items()
        ]

    def networks(self) -> list[Network]:
        """Return a network for every prefix of the model's names."""
        networks: dict[str, Network] = {}
        for key, name, tensor in self._entries:
            parts = self._path(key, name).split(".")
            for start in range(len(parts)):
                suffix = ".".join(parts[start:])
                if suffix not in self._own:
                    continue
                path = ".".join(parts[:start])
                if path not in networks:  # the model's names may begin with a checkpoint's keys
                    split = f".{name}".endswith(f".{suffix}")
                    prefix = name.removesuffix(suffix).rstrip(".") if split else ""
                    networks[path] = Network(key if split else path, prefix, path)
                other = networks[path].weights.setdefault(suffix, tensor)
                if other is not tensor and not torch.equal(other, tensor):
                    raise WeightsError(
                        f"model.weights: the file has two values of {suffix}, whose names differ "
                        f"only by {' or '.join(_WRAPPERS)}; save one network alone"
                    )
                networks[path].sources.add(key)
        return list(networks.values())

    def unused(self, network: Network, other_networks: Iterable[Network]) -> list[str]:
        """Return the names under the network's path that belong to no network."""
        start = _start(network.path)
        elsewhere = tuple(_start(n.path) for n in other_networks if _start(n.path).startswith(start)
                          and n is not network)  # fmt: skip
        paths = [self._path(k, name) for k, name, _ in self._entries if k in network.sources]
        return [
            path.removeprefix(start)
            for path in paths
            if path.startswith(start)
            and not path.startswith(elsewhere)
            and path.removeprefix(start) not in self._own
        ]

    def versions(self, network: Network) -> dict[str, object]:
        """Return layer → version of its class, from torch's metadata."""
        start = _start(network.path)
        return {
            f"{self._path(key, self.clean(name))}.".removeprefix(start).rstrip("."): version
            for key in network.sources
            for name, version in getattr(self._parts[key], "_metadata", {}).items()
            if f"{self._path(key, self.clean(name))}.".startswith(start)
        }

    def _path(self, key: str, name: str) -> str:
        return ".".join(part for part in (self.clean(key), name) if part)


def without_wrappers(model_names: Collection[str]) -> Callable[[str], str]:
    """Return a function that removes wrapper components, except those in the model's names.

    >>> without_wrappers(["a.b"])("module.a._orig_mod.b")
    'a.b'
    """
    drop = {*_WRAPPERS} - {part for name in model_names for part in name.split(".")}
    return lambda name: ".".join(part for part in name.split(".") if part not in drop)


def _start(path: str) -> str:
    return f"{path}." if path else ""


def common_prefixes(names: Collection[str]) -> list[str]:
    """Return the common prefixes of all names, the shortest first.

    >>> common_prefixes(["net.a.weight", "net.a.bias"])
    ['', 'net.', 'net.a.']
    """
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len({*level}) > 1:
            break
        shared.append(level[0])
    return ["".join(f"{part}." for part in shared[:n]) for n in range(len(shared) + 1)]
