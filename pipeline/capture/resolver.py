"""Selection: which activations of a model a `LayerSelector` means, and what each of them is.

In: a model, what its layers did with the dummy batch, and a selector. Out: the selected layers in
execution order, each with its shape and axes. Called by planning and by `featuremaps layers`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from pipeline.capture.axes import Axes, Tokens
from pipeline.capture.axis_inference import axes_of, model_sizes
from pipeline.capture.layer_path import LayerPath
from pipeline.capture.patterns import Patterns
from pipeline.capture.selector import LayerSelector
from pipeline.capture.token_grids import TokenGrids
from pipeline.capture.trace import LayerCall, Trace, TracedTensor
from pipeline.common.errors import LayerError, suggestion

log = logging.getLogger(__name__)


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


class LayerResolver:
    """The layers of one model, as the dummy batch showed them."""

    def __init__(
        self,
        module: nn.Module,
        traced: Trace,
        *,
        image: Sequence[int],
        tokens: Tokens,
        declared: Mapping[str, str],
    ) -> None:
        self._tokens = tokens
        self._declared = declared
        self._patterns = Patterns(module, traced)
        self._patterns.check_declared(declared)
        self._modules = self._patterns.modules
        self._sizes = model_sizes(traced.calls, self._modules, (image[1], image[2]), tokens)
        self._grids = TokenGrids(tokens, traced.calls, self._modules, image)

    def select(self, selector: LayerSelector) -> list[Layer]:
        """Return the selected layers, in execution order."""
        self._left_out: list[str] = []
        layers: dict[str, tuple[int, Layer]] = {}
        for address, exact in self._patterns.addresses(selector).items():
            for order, layer in self._at(address, exact=exact):
                one = replace(address, call=layer.call)
                if not self._patterns.excludes(selector, one, exact):
                    layers[layer.name] = (order, layer)
        if self._left_out:
            log.info("layers: %d left out: %s", len(self._left_out), some(self._left_out))
        if not layers and not self._left_out:
            raise LayerError("layers: include, types and exclude together leave no layer")
        if not layers:
            raise LayerError(
                "layers: none of the selected layers returns one tensor per sample: "
                f"{self._left_out[0]}"
            )
        chosen = [layer for _, layer in sorted(layers.values(), key=lambda pair: pair[0])]
        loose = [layer.name for layer in chosen if layer.axes.prefix_tokens and not layer.axes.grid]
        if loose:
            log.warning(
                "layers: %s: the number of tokens is not that of the patches, so they are shown as "
                "a strip; the first %d is taken for the class token (model.prefix_tokens)",
                some(loose), self._tokens.prefix or 0,
            )  # fmt: skip
        return _with_aliases(chosen, selector.aliases)

    def axes(self, call: LayerCall, tensor: TracedTensor, key: str | None = None) -> Axes | str:
        """Return the axes of an activation after `sample`, or why they are not known."""
        sample_axis = tensor.sample_axis()
        if isinstance(sample_axis, str):
            return sample_axis
        shape = _without(tensor.shape, sample_axis)
        names = axes_of(
            shape,
            module=self._modules[call.layer],
            sizes=self._sizes,
            key=key,
            others=[_without(other, sample_axis) for other, *_ in call.outputs.values()],
            sample_axis=sample_axis,
            word=self._patterns.declared(self._declared, call.layer, key),
            where=f"model.axes ({call.layer})",
        )
        if isinstance(names, str):
            return names
        if "token" in names:
            return self._grids.axes(call.layer, shape[names.index("token")], names)
        return Axes(names=names)

    def _at(self, address: LayerPath, *, exact: bool) -> list[tuple[int, Layer]]:
        """Return the activations at an address with their order; others are an error or logged."""
        made = self._patterns.calls(address.layer)
        if not made:
            parent = self._modules.get(address.layer.rpartition(".")[0])
            fused = getattr(parent, "fused_attn", False) and address.layer.endswith(".attn_drop")
            way = "; set model.fused_attention=false" if fused else ""
            problem = f"is never reached in a forward pass{way}"
            return self._refuse(address, problem, exact=exact)
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

    def _refuse(self, address: LayerPath, problem: str, *, exact: bool) -> list[tuple[int, Layer]]:
        """Leave an activation out; one that was named exactly is an error."""
        if exact:
            raise LayerError(f"layers.include: {address} {problem}")
        self._left_out.append(f"{address} {problem}")
        return []

    def _layer(self, address: LayerPath, call: LayerCall) -> Layer | str:
        values = call.inputs if address.input else call.outputs
        if address.key not in values:
            keys = [key for key in values if key is not None]
            if not values:
                return "takes no dense tensor" if address.input else "returns no dense tensor"
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


def some(texts: list[str], most: int = 3) -> str:
    """Return the first of some texts, and how many more there are."""
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
