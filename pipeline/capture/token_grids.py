"""Token grids: which tokens are the patches of a grid, and which are prefix tokens.

A number of tokens proves nothing: 100 of 196 tokens that a model keeps are not a 10×10 grid. A grid
is claimed only if the source declares it or the trace shows the image being cut into it, and only
for exactly that number of tokens. Tokens that are the same for every image but do not come first
are no prefix.
"""

import logging
from collections.abc import Mapping, Sequence
from math import isqrt, prod

from torch import nn

from pipeline.capture.axes import ATTENTION, TOKENS, Axes, Tokens
from pipeline.capture.trace import LayerCall

log = logging.getLogger(__name__)


class TokenGrids:
    """The known token grids and prefix tokens of one model."""

    def __init__(
        self,
        tokens: Tokens,
        calls: Sequence[LayerCall],
        modules: Mapping[str, nn.Module],
        image: Sequence[int],
    ) -> None:
        constant_first = {
            tensor.constant_first
            for call in calls
            for tensor in (*call.inputs.values(), *call.outputs.values())
        }
        elsewhere = False in constant_first and True not in constant_first
        self._prefix = 0 if elsewhere else tokens.prefix or 0
        if elsewhere and tokens.prefix:
            log.warning(
                "layers: the %d prefix tokens do not come first, so the grid of the tokens beside "
                "them is unknown", tokens.prefix,
            )  # fmt: skip
        self._class_token = tokens.class_token
        # A source that does not know the prefix may not know the order of the patches either.
        guess = tokens.grid is None and tokens.prefix is not None
        self._grids = _cut(calls, modules, image) if guess else tokens.grids
        self._first: dict[int, int] = {}
        """Number of tokens → order of the first call that returned that many."""
        self._orders: dict[str, int] = {}
        """Layer → order of its first call."""
        self._behind: dict[int, int] = {}
        """Number of tokens → order of the first call that takes that many, without the prefix."""
        for call in calls:
            self._orders.setdefault(call.layer, call.order)
            for tensor in call.inputs.values():
                if tensor.sliced and tensor.sliced == self._prefix:
                    self._behind.setdefault(tensor.shape[1], call.order)
            for shape, *_ in call.outputs.values():
                if len(shape) == 3:
                    for count in shape[:2]:
                        self._first.setdefault(count, call.order)
        self._flattened = _flattened(calls)
        joined = [self._first.get(h * w + self._prefix) for h, w in self._grids]
        self._joined = min((order for order in joined if order is not None), default=0)
        """Order of the first call that returned the prefix tokens followed by a grid's patches."""

    def axes(self, layer: str, count: int, names: tuple[str, ...]) -> Axes:
        """Return the axes of a layer's tokens, with their grid if it is known.

        If there are as many tokens as patches, they are the patches; unless the prefix tokens
        joined them earlier and no slice removed them. Then tokens were dropped or merged, and the
        class token may still be first.
        """
        if (layer, count) in self._flattened:
            return Axes(names=names, grid=self._flattened[layer, count])
        order = self._orders.get(layer, 0)
        joined = self._first.get(count + self._prefix)
        for height, width in self._grids:
            if count == height * width + self._prefix:
                return self._axes(names, self._prefix, (height, width))
            alone = joined is None or joined >= order or order >= self._behind.get(count, order + 1)
            if count == height * width and alone:
                return Axes(names=names, grid=(height, width))
        later = order < self._joined or (joined is not None and joined > order)
        has_prefix = names == TOKENS and count > self._prefix and not later
        prefix = self._prefix if has_prefix else 0
        return self._axes(names, prefix)

    def attention_axes(self, keys: int) -> Axes:
        """Return the axes of attention weights, with the grid of the keys if it is known.

        Keys are a grid's patches, with all prefix tokens or without any.
        """
        for height, width in self._grids:
            for prefix in dict.fromkeys((self._prefix, 0)):
                if keys == height * width + prefix:
                    return self._axes(ATTENTION, prefix, (height, width))
        return self._axes(ATTENTION, self._prefix if keys > self._prefix else 0)

    def _axes(
        self, names: tuple[str, ...], prefix: int, grid: tuple[int, int] | None = None
    ) -> Axes:
        first = prefix > 0 and self._class_token
        return Axes(names=names, grid=grid, prefix_tokens=prefix, class_token=first)


def _flattened(calls: Sequence[LayerCall]) -> dict[tuple[str, int], tuple[int, int]]:
    """Return (layer, number of tokens) → (height, width) of maps flattened to tokens.

    A layer that takes a map and returns all of its positions has no prefix tokens. Neither has one
    that returns its last inner layer's output; elsewhere a model may have joined them again.
    """
    grids: dict[tuple[str, int], tuple[int, int]] = {}
    shapes: dict[str, set[tuple[int, ...]]] = {}
    last = ""
    for call in calls:
        maps = {
            (shape[0], shape[2] * shape[3], shape[1]): shape[2:]
            for shape, *_ in call.inputs.values()
            if len(shape) == 4
        }
        shapes[call.layer] = {shape for shape, *_ in call.outputs.values() if len(shape) == 3}
        for shape in shapes[call.layer]:
            inner = last.startswith(f"{call.layer}.") and shape in shapes[last]
            if shape in maps and shape[1] > 1:
                height, width = maps[shape]
                grids[call.layer, shape[1]] = (height, width)
            elif inner and (last, shape[1]) in grids:
                grids[call.layer, shape[1]] = grids[last, shape[1]]
        last = call.layer
    return grids


def _cut(
    calls: Sequence[LayerCall], modules: Mapping[str, nn.Module], image: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the grids that an image is cut into: convolution maps and unfolded patches."""
    channels, height, width = image
    grids: dict[tuple[int, int], None] = {}
    for call in calls:
        if isinstance(modules.get(call.layer), nn.Conv2d):
            shapes = [shape for shape, *_ in call.outputs.values() if len(shape) == 4]
            grids |= {(h, w): None for _, _, h, w in shapes if h * w > 1}
        if isinstance(module := modules.get(call.layer), nn.Unfold):
            shapes = [shape for shape, *_ in call.inputs.values() if len(shape) == 4]
            grids |= {_unfolded(module, shape[2:]): None for shape in shapes}
        for shape, *_ in call.inputs.values():
            if len(shape) != 3 or prod(shape[1:]) != prod(image):
                continue
            side = isqrt(shape[2] // channels)
            if side and shape[2] == channels * side**2 and not (height % side or width % side):
                grids[height // side, width // side] = None
    return [*grids]


def _unfolded(module: nn.Unfold, size: Sequence[int]) -> tuple[int, int]:
    kernel, stride, padding, dilation = (
        (value, value) if isinstance(value, int) else value
        for value in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    height, width = (
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width
