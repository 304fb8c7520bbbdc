"""Layer resolution: the activations that a `LayerSelector` selects, with their shapes and axes.

Takes a model, its trace of the dummy batch and a selector; returns the selected layers in execution
order. Used by planning and by `featuremaps layers`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from pipeline.capture.attention import ATTENTION, ROLLOUT
from pipeline.capture.axes import ATTENTION as ATTENTION_AXES
from pipeline.capture.axes import Axes, Tokens
from pipeline.capture.axis_inference import axes_of, model_sizes
from pipeline.capture.patterns import Patterns
from pipeline.capture.selector import MARK, LayerPath, LayerSelector
from pipeline.capture.token_grids import TokenGrids
from pipeline.capture.trace import WINDOW_ATTENTION, LayerCall, Trace, TracedTensor
from pipeline.common.errors import LayerError, suggestion

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One selected activation.

    Attributes:
        name: name in the archive: the layer, with its call, key or `in` if they apply.
        alias: display name.
        module_type: class name of the module.
        call: 0-based call of the layer within one forward pass.
        axes: the axes after `sample`.
        shape: their sizes; maps without channels and single numbers have one, averaged attention
            weights one head.
        source_dtype: dtype of the layer's output, e.g. `float32`.
        sample_axis: position of the sample axis in the layer's output; the archive stores it first.
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
        """Return a view of the layer's output with the sample axis first."""
        rows = output.movedim(self.sample_axis, 0)
        return rows.unsqueeze(1) if rows.ndim == len(self.shape) else rows


class LayerResolver:
    """Resolver of layer selectors for one traced model."""

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
        for path, exact in self._patterns.paths(selector).items():
            for order, layer in self._at(path, exact=exact):
                call_path = replace(path, call=layer.call)
                if not self._patterns.excludes(selector, call_path, exact):
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
        selected = [layer for _, layer in sorted(layers.values(), key=lambda pair: pair[0])]
        without_grid = [
            layer.name for layer in selected if layer.axes.prefix_positions and not layer.axes.grid
        ]
        if without_grid:
            log.warning(
                "layers: %s: the number of tokens does not match the patch grid; they are shown as "
                "a strip, with the first %d as prefix tokens (model.prefix_tokens)",
                some(without_grid), self._tokens.prefix or 0,
            )  # fmt: skip
        return _with_aliases(selected, selector.aliases)

    def axes(self, call: LayerCall, tensor: TracedTensor, key: str | None = None) -> Axes | str:
        """Return the axes of an activation after `sample`, or why they are unknown."""
        sample_axis = tensor.sample_axis()
        if isinstance(sample_axis, str):
            return sample_axis
        shape = _without(tensor.shape, sample_axis)
        if call.layer.endswith((f"{MARK}{ATTENTION}", f"{MARK}{ROLLOUT}")):
            tokens = shape[-1] in self._sizes.token_counts
            if not tokens and call.module_type == ROLLOUT:
                return f"has {shape[-1]} keys, which are not the model's tokens"
            if not tokens or call.module_type == WINDOW_ATTENTION:
                return Axes(names=ATTENTION_AXES)
            return self._grids.attention_axes(shape[-1])
        names = axes_of(
            shape,
            module=self._modules[call.layer],
            sizes=self._sizes,
            key=key,
            output_shapes=[_without(other, sample_axis) for other, *_ in call.outputs.values()],
            sample_axis=sample_axis,
            word=self._patterns.declared(self._declared, call.layer, key),
            where=f"model.axes ({call.layer})",
        )
        if isinstance(names, str):
            return names
        if names == ATTENTION_AXES and shape[-1] in self._sizes.token_counts:
            return self._grids.attention_axes(shape[-1])
        if "token" in names:
            return self._grids.axes(call.layer, shape[names.index("token")], names)
        return Axes(names=names)

    def _at(self, path: LayerPath, *, exact: bool) -> list[tuple[int, Layer]]:
        """Return the activations at a path with their order; skip the rest, or raise."""
        calls = self._patterns.calls(path.layer)
        if not calls:
            parent = path.layer.rpartition(".")[0]
            fused = getattr(self._modules.get(parent), "fused_attn", False)
            drop = fused and path.layer.endswith(".attn_drop")
            remedy = f"; use {parent}{MARK}{ATTENTION}" if drop else ""
            problem = f"is never reached in a forward pass{remedy}"
            return self._refuse(path, problem, exact=exact)
        if path.call is not None and path.call >= len(calls):
            problem = f"is called {len(calls)} times; calls are numbered from 0"
            return self._refuse(path, problem, exact=exact)
        result = []
        for call in calls if path.call is None else [calls[path.call]]:
            numbered = len(calls) > 1 or path.call is not None
            name = replace(path, call=call.call if numbered else None)
            if str(name) in self._modules and str(name) != path.layer:
                raise LayerError(
                    f"layers: {name} is both a layer and an activation of {path.layer}; rename one "
                    "of the two modules"
                )
            layer = self._layer(name, call)
            if isinstance(layer, str):
                self._refuse(name, layer, exact=exact)
            else:
                result.append((call.order, layer))
        return result

    def _refuse(self, path: LayerPath, problem: str, *, exact: bool) -> list[tuple[int, Layer]]:
        """Skip an activation, or raise if it was named exactly."""
        if exact:
            raise LayerError(f"layers.include: {path} {problem}")
        self._left_out.append(f"{path} {problem}")
        return []

    def _layer(self, path: LayerPath, call: LayerCall) -> Layer | str:
        values = call.inputs if path.input else call.outputs
        if call.problem:
            return call.problem
        if path.key not in values:
            keys = [key for key in values if key is not None]
            if not values:
                return "takes no dense tensor" if path.input else "returns no dense tensor"
            if not keys:
                return f"is a single tensor; it has no [{path.key}]"
            base = replace(path, key=None)
            return f"is several tensors; use {' or '.join(f'{base}[{key}]' for key in keys[:6])}"
        tensor = values[path.key]
        sample_axis = tensor.sample_axis()
        if isinstance(sample_axis, str):
            return sample_axis
        if not tensor.dtype.startswith(("float", "bfloat")):
            return f"is {tensor.dtype}, not floating point"
        if 0 in tensor.shape:
            return f"is empty: its shape is {tensor.shape}"
        axes = self.axes(call, tensor, None if path.input else path.key)
        if isinstance(axes, str):
            return axes
        shape = _without(tensor.shape, sample_axis)
        return Layer(
            name=str(path),
            alias=str(path),
            module_type=call.module_type,
            call=call.call,
            axes=axes,
            shape=(1, *shape) if len(shape) < len(axes.names) else shape,
            source_dtype=tensor.dtype,
            sample_axis=sample_axis,
        )


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def some(texts: list[str]) -> str:
    """Return the first three texts and the number of the others, as one line."""
    return "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")


def _with_aliases(layers: list[Layer], aliases: dict[str, str]) -> list[Layer]:
    names = [layer.name for layer in layers]
    for name in aliases:
        if name not in names:
            raise LayerError(f"layers.aliases: {name!r} is not selected; {suggestion(name, names)}")
    final_names = [aliases.get(name, name) for name in names]
    for alias in final_names:
        if final_names.count(alias) > 1:
            raise LayerError(
                f"layers.aliases: two layers have the alias {alias!r}; use different ones"
            )
    return [replace(layer, alias=alias) for layer, alias in zip(layers, final_names, strict=True)]
