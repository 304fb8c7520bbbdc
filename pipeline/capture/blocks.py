"""Blocks: the repeated units of a model (a ResNet's bottlenecks, a transformer's layers).

They are found by structure: modules of one class inside one parent. Of nested repetitions the
outer one counts. Stages, which only chain blocks, are replaced by their blocks.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from torch import nn

from pipeline.capture.trace import LayerCall

_Named = tuple[str, nn.Module]


def blocks_of(model: nn.Module, calls: Mapping[str, Sequence[LayerCall]]) -> list[str]:
    """Return the names of a model's blocks in module order; empty if it has none."""
    blocks = _Finder(model, calls).under(("", model))
    return [name for name, _ in blocks] or _repeated_containers(model, calls)


def _repeated_containers(model: nn.Module, calls: Mapping[str, Sequence[LayerCall]]) -> list[str]:
    """Return the blocks of a model that builds them only from Sequential, as ConvMixer does."""
    for name, module in model.named_modules():
        children = _children((name, module))
        if len(children) > 1 and all(
            label in calls and _is_container(child) and _weights(child) > 1
            for label, child in children
        ):
            return [label for label, _ in children]
    return []


def children_of(model: nn.Module) -> list[str]:
    """Return the names of a model's top-level children, or those of its only child."""
    prefix, children = "", list(model.named_children())
    while len(children) == 1 and any(children[0][1].children()):
        name, child = children[0]
        prefix, children = f"{prefix}{name}.", list(child.named_children())
    return [prefix + name for name, _ in children]


class _Finder:
    def __init__(self, model: nn.Module, calls: Mapping[str, Sequence[LayerCall]]) -> None:
        self._calls = calls
        self._kinds = {type(module) for module in model.modules() if _weights(module) > 1}

    def under(self, parent: _Named) -> list[_Named]:
        units = [unit for unit in _elements(parent) if self._is_unit(unit)]
        kinds = Counter(type(module) for _, module in units)
        repeated = [at for at, (_, module) in enumerate(units) if kinds[type(module)] > 1]
        homes = {_home(parent, units[at]) for at in repeated} - {""}
        blocks: list[_Named] = []
        for at, unit in enumerate(units):
            if at in repeated:
                blocks.append(unit)
                continue
            # A different module among blocks is a block too, like Inception's reductions.
            among = bool(repeated) and repeated[0] < at < repeated[-1]
            odd = [unit] if among or _home(parent, unit) in homes else []
            blocks += self.under(unit) or odd
        return self._opened(blocks)

    def _opened(self, blocks: Sequence[_Named]) -> list[_Named]:
        """Return the blocks, with every stage replaced by its blocks."""
        stages = {kind for kind in {type(m) for _, m in blocks} if self._are_stages(blocks, kind)}
        return [
            block
            for unit in blocks
            for block in (self._opened(self._chain(unit)) if type(unit[1]) in stages else [unit])
        ]

    def _are_stages(self, units: Sequence[_Named], kind: type) -> bool:
        """Return whether all units of a class only chain blocks.

        The last block's output is then the stage's output, or has the size of its input if the
        stage ends with a downsampling. DenseNet's dense blocks concatenate their layers' outputs.
        """
        of_kind = [unit for unit in units if type(unit[1]) is kind]
        chains = [self._chain(unit) for unit in of_kind]
        return all(
            chain and not self._sizes(chain[-1]).isdisjoint(self._sizes(unit, inputs=True))
            for unit, chain in zip(of_kind, chains, strict=True)
        )

    def _chain(self, stage: _Named) -> list[_Named]:
        """Return the units that a module, or every container in it, consists of."""
        children = _children(stage)
        # A stage's own children are numbered (`b1`, `b2`); a block's have names.
        stems = {re.sub(r"\d+$", "", name) for name, _ in children}
        numbered = len(stems) == 1 and children[0][0][-1].isdigit()
        homes = [stage] if numbered else [child for child in children if _is_container(child[1])]
        chain: list[_Named] = []
        for home in homes:
            elements = [e for e in _elements(home) if not isinstance(e[1], nn.Identity)]
            if len({type(m) for _, m in elements}) == 1 and all(map(self._is_unit, elements)):
                chain += elements
        return chain

    def _is_unit(self, element: _Named) -> bool:
        """Return whether a module is reached and is more than a layer with norm and activation."""
        return element[0] in self._calls and type(element[1]) in self._kinds

    def _sizes(self, unit: _Named, *, inputs: bool = False) -> set[int]:
        calls = self._calls[unit[0]]
        tensors = [tensor for call in calls for tensor in call.outputs.values()]
        if inputs:
            tensors += [tensor for call in calls for tensor in call.inputs.values()]
        return {prod(tensor.shape) for tensor in tensors}


def _children(parent: _Named) -> list[_Named]:
    prefix = f"{parent[0]}." if parent[0] else ""
    return [(prefix + name, child) for name, child in parent[1].named_children()]


def _elements(parent: _Named) -> Iterator[_Named]:
    """Yield the modules inside a module, with containers replaced by their contents."""
    for child in _children(parent):
        if _is_container(child[1]):
            yield from _elements(child)
        else:
            yield child


def _weights(module: nn.Module) -> int:
    """Return the number of weight matrices and kernels of a module."""
    return sum(sum(side > 1 for side in p.shape) > 1 for p in module.parameters())


def _is_container(module: nn.Module) -> bool:
    """Return whether a module only holds other modules, or calls them in order."""
    plain = (nn.Module.forward, nn.Sequential.forward)
    return any(module.children()) and type(module).forward in plain


def _home(parent: _Named, unit: _Named) -> str:
    """Return the parent's child that holds a unit; empty if the unit is a child."""
    inner = unit[0][len(parent[0]) :].strip(".")
    return inner.partition(".")[0] if "." in inner else ""
