"""Selection: which activations of a model a `LayerSelector` means, and what each of them is.

In: a model, what its layers did with the dry batch, and a selector. Out: the selected layers in
execution order, each with its shape and axes. Called by planning and by `featuremaps layers`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from pipeline.foundation.errors import LayerError, suggestion
from pipeline.layers.addresses import OUTPUT, Address
from pipeline.layers.axes import Axes, Tokens, axes_of, has_channels_last
from pipeline.layers.grids import TokenGrids
from pipeline.layers.selector import LayerSelector, is_exact, matches, readings
from pipeline.layers.trace import LayerCall, Trace, TracedTensor

log = logging.getLogger(__name__)
_FROM_END = re.compile(r"-[1-9]\d*")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One selected activation.

    Attributes:
        name: the archive's name: the layer, and the call, key or `in` where they apply.
        alias: the name to show.
        module_type: class name of the module.
        call: which invocation of the layer in one forward, 0-based.
        axes: the axes after `sample`.
        shape: their sizes.
        source_dtype: what the layer returned, e.g. `float32`.
        sample_axis: position of the axis of samples in what the layer returns; it is stored first.
    """

    name: str
    alias: str
    module_type: str
    call: int
    axes: Axes
    shape: tuple[int, ...]
    source_dtype: str
    sample_axis: int = 0

    def rows(self, output: Tensor) -> Tensor:
        """Return what the layer returned with the axis of samples first; a view."""
        return output.movedim(self.sample_axis, 0)


class Selection:
    """The layers of one model, as the dry batch showed them."""

    def __init__(
        self,
        module: nn.Module,
        traced: Trace,
        *,
        image: Sequence[int],
        tokens: Tokens,
        declared: Mapping[str, str],
    ) -> None:
        """Take a model and what it did with the dry batch.

        Args:
            module: the model.
            traced: what its layers did.
            image: channels, height and width of the images.
            tokens: what the source declares of the model's tokens.
            declared: layer pattern → word of `pipeline.layers.axes.DECLARABLE`.
        """
        self._tokens = tokens
        self._declared = declared
        self._traced = traced
        self._image = image
        every = dict(module.named_modules(remove_duplicate=False))
        self._names: list[str] = [name for name in every if name]
        self._modules = {name: every[name] for name in self._names}
        self._modules[traced.model.layer] = module
        first: dict[int, str] = {}
        # A module may stand under several names; it is recorded under its first.
        self._same = {name: first.setdefault(id(m), name) for name, m in self._modules.items()}
        self._calls: dict[str, list[LayerCall]] = {}
        for call in (*traced.calls, traced.model):
            self._calls.setdefault(call.layer, []).append(call)
        outputs = {call.layer: call.outputs for call in traced.calls}
        shapes = {name: tensors[None].shape for name, tensors in outputs.items() if None in tensors}
        self._mixed = has_channels_last(self._modules, shapes)
        self._grids = TokenGrids(tokens, traced.calls, self._modules, image)

    @property
    def names(self) -> list[str]:
        """Every dotted name, also second names of the same module."""
        return self._names

    def select(self, selector: LayerSelector) -> list[Layer]:
        """Return the selected layers, in execution order.

        Raises:
            LayerError: when a pattern matches nothing, or a layer that was named exactly is not
                reached or does not return one tensor per sample.
        """
        self._check_types(selector)
        self._left_out: list[str] = []
        layers: dict[str, tuple[int, Layer]] = {}
        for text, exact in self._wanted(selector).items():
            for order, layer in self._at(Address.parse(text, self.names), exact=exact):
                layers[layer.name] = (order, layer)
        if self._left_out:
            log.info("layers: %d left out: %s", len(self._left_out), _some(self._left_out))
        if not layers:
            why = f": {self._left_out[0]}" if self._left_out else ""
            raise LayerError(
                f"layers: none of the selected layers returns one tensor per sample{why}"
            )
        chosen = [layer for _, layer in sorted(layers.values(), key=lambda pair: pair[0])]
        loose = [layer.name for layer in chosen if layer.axes.prefix_tokens and not layer.axes.grid]
        if loose:
            log.warning(
                "layers: %s: the number of tokens is not that of the patches, so they are shown as "
                "a strip; the first %d is taken for the class token (model.prefix_tokens)",
                _some(loose), self._tokens.prefix or 0,
            )  # fmt: skip
        return _with_aliases(chosen, selector.aliases)

    def axes(self, call: LayerCall, tensor: TracedTensor, key: str | None = None) -> Axes | str:
        """Return the axes of an activation after `sample`, or why they are not known.

        Args:
            call: that took or returned it.
            tensor: what it was in the dry batch.
            key: its key.

        Raises:
            ConfigError: when `model.axes` contradicts the shape.
        """
        sample_axis = tensor.sample_axis()
        if isinstance(sample_axis, str):
            return sample_axis
        shape = _without(tensor.shape, sample_axis)
        word = next(
            (word for pattern, word in self._declared.items() if matches(pattern, call.layer)),
            None,
        )
        names = axes_of(
            shape,
            module=self._modules[call.layer],
            image=(self._image[1], self._image[2]),
            tokens=self._tokens,
            mixed=self._mixed,
            key=key,
            sample_axis=sample_axis,
            word=word,
            where=f"model.axes ({call.layer})",
        )
        if isinstance(names, str):
            return names
        if "token" in names:
            return self._grids.axes(call.layer, shape[names.index("token")], names)
        return Axes(names=names)

    def _wanted(self, selector: LayerSelector) -> dict[str, bool]:
        """Return address → whether it was named exactly."""
        wanted: dict[str, bool] = {}
        for pattern in map(self._from_end, selector.include):
            if is_exact(pattern):
                address = Address.parse(pattern, list(self._modules))
                if address.layer not in self._modules:
                    raise LayerError(
                        f"layers.include: no layer {pattern!r}; "
                        f"{suggestion(address.layer, self.names)}"
                    )
                wanted[str(address)] = True
                continue
            for address in self._matching(pattern):
                name = address.layer
                if name == self._same[name] and self._kept(selector, name):
                    wanted.setdefault(str(address), False)
        if not wanted:
            raise LayerError("layers: include, types and exclude together leave no layer")
        return wanted

    def _matching(self, pattern: str) -> list[Address]:
        """Return what a glob or an expression finds.

        Where its end may be an element's key or a set of characters, it is the key if a match has
        such an element.

        Raises:
            LayerError: when it finds nothing.
        """
        found = [
            [replace(reading, layer=name) for name in self.names if matches(reading.layer, name)]
            for reading in readings(pattern)
        ]
        *whole, elements = found
        present = [address for address in elements if self._has(address)]
        if present or not whole:
            matching = present or elements
        else:
            matching = whole[0]
        if matching:
            return matching
        if elements:
            reasons = [self._at(address, exact=False) or self._left_out[-1] for address in elements]
            raise LayerError(f"layers.include: {pattern!r} matches no element: {reasons[0]}")
        raise LayerError(
            f"layers.include: {pattern!r} matches no layer; {suggestion(pattern, self.names)}"
        )

    def _has(self, address: Address) -> bool:
        """Tell whether there is a tensor at an address, where its layer is reached."""
        made = self._calls.get(self._same[address.layer], [])
        calls = made if address.call is None else made[address.call :][:1]
        return any(
            address.key in (call.inputs if address.input else call.outputs) for call in calls
        )

    def _from_end(self, pattern: str) -> str:
        """Return the address that `last`, `penultimate` or a number from the end stands for.

        Of the numbered ones only layers without layers inside count, in execution order. Other
        patterns, and layers of such a name, are returned as they are.

        Raises:
            LayerError: when the model has no such layer.
        """
        number = -1 if pattern == "last" else int(pattern) if _FROM_END.fullmatch(pattern) else 0
        if pattern in self._modules or not (number or pattern == "penultimate"):
            return pattern
        if pattern == "penultimate":
            if self._traced.penultimate is None:
                keys = ", ".join(f"{OUTPUT}[{key}]" for key in self._traced.model.outputs)
                raise LayerError(
                    "layers.include: penultimate: the model returns several tensors; name the "
                    f"layer, or choose {keys or 'one of its own'}"
                )
            return str(self._traced.penultimate)
        leaves = [c for c in self._traced.calls if not any(self._modules[c.layer].children())]
        if len(leaves) < -number:
            raise LayerError(
                f"layers.include: {pattern}: no {-number} layers reached in a forward pass"
            )
        found = leaves[number]
        several = len(self._calls[found.layer]) > 1
        return str(Address(layer=found.layer, call=found.call if several else None))

    def _type_names(self, name: str) -> set[str]:
        return {kind.__name__ for kind in type(self._modules[name]).__mro__}

    def _kept(self, selector: LayerSelector, name: str) -> bool:
        if selector.types and not self._type_names(name) & set(selector.types):
            return False
        return not any(matches(pattern, name) for pattern in selector.exclude)

    def _check_types(self, selector: LayerSelector) -> None:
        there = set().union(*(self._type_names(name) for name in self.names))
        for kind in selector.types:
            if kind not in there:
                kinds = sorted({type(module).__name__ for module in self._modules.values()})
                near = suggestion(kind, kinds)
                raise LayerError(f"layers.types: the model has no layer of type {kind!r}; {near}")

    def _at(self, address: Address, *, exact: bool) -> list[tuple[int, Layer]]:
        """Return the activations at an address with their order; others are an error or logged."""
        made = self._calls.get(self._same[address.layer], [])
        if not made:
            return self._refuse(address, self._unreached(address.layer), exact=exact)
        if address.call is not None and address.call >= len(made):
            problem = f"is called {len(made)} times; calls are numbered from 0"
            return self._refuse(address, problem, exact=exact)
        result = []
        for call in made if address.call is None else [made[address.call]]:
            numbered = len(made) > 1 or address.call is not None
            name = replace(address, call=call.call if numbered else None)
            found = self._layer(name, call)
            if isinstance(found, str):
                self._refuse(name, found, exact=exact)
            else:
                # A layer's input is there before what its children return.
                result.append((call.order, found))
        return result

    def _unreached(self, layer: str) -> str:
        """Return in words why a layer gave nothing."""
        parent = self._modules.get(layer.rpartition(".")[0])
        fused = getattr(parent, "fused_attn", False) and layer.endswith(".attn_drop")
        way = "; set model.fused_attention=false" if fused else ""
        return f"is never reached in a forward pass{way}"

    def _refuse(self, address: Address, problem: str, *, exact: bool) -> list[tuple[int, Layer]]:
        """Leave an activation out; one that was named exactly is an error."""
        if exact:
            raise LayerError(f"layers.include: {address} {problem}")
        self._left_out.append(f"{address} {problem}")
        return []

    def _layer(self, address: Address, call: LayerCall) -> Layer | str:
        """Return the activation of one call, or why it cannot be kept."""
        values = call.inputs if address.input else call.outputs
        if address.key not in values:
            keys = [key for key in values if key is not None]
            if not values:
                return "takes no tensor" if address.input else "returns no tensor"
            if not keys:
                return f"is one tensor, it has no [{address.key}]"
            base = replace(address, key=None)
            return f"is several tensors; choose {' or '.join(f'{base}[{key}]' for key in keys[:6])}"
        tensor = values[address.key]
        sample_axis = tensor.sample_axis()
        if isinstance(sample_axis, str):
            return sample_axis
        if not tensor.dtype.startswith(("float", "bfloat")):
            return f"is {tensor.dtype}, not floating point"
        if 0 in tensor.shape:
            return f"has shape {tensor.shape}: it is empty"
        axes = self.axes(call, tensor, None if address.input else address.key)
        if isinstance(axes, str):
            return axes
        return Layer(
            name=str(address),
            alias=str(address),
            module_type=call.module_type,
            call=call.call,
            axes=axes,
            shape=_without(tensor.shape, sample_axis),
            source_dtype=tensor.dtype,
            sample_axis=sample_axis,
        )


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _some(texts: list[str], most: int = 3) -> str:
    return "; ".join(texts[:most]) + (
        f"; and {len(texts) - most} more" if len(texts) > most else ""
    )


def _with_aliases(layers: list[Layer], aliases: dict[str, str]) -> list[Layer]:
    names = [layer.name for layer in layers]
    for name in aliases:
        if name not in names:
            raise LayerError(f"layers.aliases: {name!r} is not selected; {suggestion(name, names)}")
    shown = [aliases.get(name, name) for name in names]
    for alias in shown:
        if shown.count(alias) > 1:
            raise LayerError(f"layers.aliases: {alias!r} would stand for two layers")
    return [replace(layer, alias=alias) for layer, alias in zip(layers, shown, strict=True)]
