"""Filters: the weights of the convolutions applied to the image."""

from torch import nn

from pipeline.common.arrays import Array
from pipeline.extraction.dummy_forward import ModelTrace

_MOST_INPUTS = 4


def filters(traced: ModelTrace) -> dict[str, Array]:
    """Return the weights of every ungrouped convolution applied to the image, in execution order.

    Such a convolution takes as many channels as the image has (at most four), and no earlier one
    returned that few channels at its size or larger. So its input is the image, perhaps normalised,
    padded or resized, and not a squeezed map of a deeper layer. Weights that did not come from the
    weights file are left out, unless `model.allow_random` is set.

    Returns:
        Layer → float32 `(filter, channel, height, width)`.
    """
    modules = dict(traced.model.module.named_modules(remove_duplicate=False))
    channels = traced.image_shape[0]
    random = () if traced.config.model.allow_random else {*traced.model.missing_keys}
    weights: dict[str, Array] = {}
    narrow: list[tuple[int, int]] = []  # sizes of maps with as few channels as the image
    for call in traced.trace.calls:  # convolutions have no submodules: they come in order
        module = modules.get(call.layer)
        if not isinstance(module, nn.modules.conv._ConvNd):
            continue
        sizes = [shape[2:] for shape, *_ in call.inputs.values() if len(shape) == 4]
        takes_image = (
            isinstance(module, nn.Conv2d)
            and module.in_channels == channels <= _MOST_INPUTS
            and module.groups == 1
            and f"{call.layer}.weight" not in random
            and sizes
            and not any(h >= sizes[0][0] and w >= sizes[0][1] for h, w in narrow)
        )
        if takes_image:
            weights.setdefault(call.layer, module.weight.detach().float().cpu().numpy())
        for shape, *_ in call.outputs.values():
            if len(shape) == 4 and shape[1] == channels:
                narrow.append((shape[2], shape[3]))
    return weights
