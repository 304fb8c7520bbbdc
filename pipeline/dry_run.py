"""The dry run: one batch of noise through the model tells what every layer gives.

Nothing is kept but names, calls, shapes and types; whatever must be known before the first byte is
written is decided from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.capture import arguments, tensors_in
from pipeline.datasets.base import Selected
from pipeline.errors import ConfigError
from pipeline.execution import choose_device
from pipeline.loading import image_shape
from pipeline.models.base import LoadedModel
from pipeline.selection import Selection

if TYPE_CHECKING:
    from pipeline.extract import Extraction


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One call of one layer in the dry batch.

    Attributes:
        layer: the module's first name.
        module_type: its class name.
        call: which call of that layer, 0-based.
        order: position among all calls, in the order in which they returned.
        parameters: numbers in the module and its children.
        inputs, outputs: key → (shape, dtype name), as `tensors_in` names them.
    """

    layer: str
    module_type: str
    call: int
    order: int
    parameters: int
    inputs: Mapping[str | None, tuple[tuple[int, ...], str]]
    outputs: Mapping[str | None, tuple[tuple[int, ...], str]]


def observe(model: nn.Module, images: Tensor) -> list[LayerCall]:
    """Run one forward pass and record every call of every layer, in execution order.

    Keeping no activation.
    """
    calls: list[LayerCall] = []
    counts: dict[str, int] = {}

    def shapes(value: object) -> dict[str | None, tuple[tuple[int, ...], str]]:
        return {
            key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for key, tensor in tensors_in(value).items()
        }

    def hook_for(name: str) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
        ) -> None:
            call = counts.get(name, 0)
            counts[name] = call + 1
            record = LayerCall(
                layer=name,
                module_type=type(module).__name__,
                call=call,
                order=len(calls),
                parameters=sum(parameter.numel() for parameter in module.parameters()),
                inputs=shapes(arguments(args, kwargs)),
                outputs=shapes(output),
            )
            calls.append(record)

        return hook

    with ExitStack() as hooks, torch.inference_mode():
        for name, module in model.named_modules():
            if name:
                handle = module.register_forward_hook(hook_for(name), with_kwargs=True)
                hooks.callback(handle.remove)
        model(images)
    return calls


DRY_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A model on its device, and what its layers did with the dry batch."""

    model: LoadedModel
    device: torch.device
    image_shape: tuple[int, int, int]
    calls: Sequence[LayerCall]

    @property
    def selection(self) -> Selection:
        """What can be selected of it."""
        return Selection(self.model, self.calls, batch=DRY_BATCH, image=self.image_shape[1:])


def observe_model(config: Extraction, images: Selected | None = None) -> Observed:
    """Load the model and run the dry batch.

    Args:
        config: the run's configuration.
        images: gives the size of the inputs where the transform leaves it open.

    Raises:
        ConfigError: when the size of the inputs stays open, or the dry batch fails.
    """
    device = choose_device(config.device)
    model = config.model.load(seed=config.seed)
    if images is not None:
        shape = image_shape(images, model.transform, config.loader.decoding)
    elif model.transform.size is not None:
        shape = (model.transform.channels, *model.transform.size)
    else:
        raise ConfigError(
            "model.transform: the weights' transform leaves the size of the images open; "
            "set model.transform.crop=224 (or another size)"
        )
    model.module.to(device)
    return Observed(
        model=model, device=device, image_shape=shape, calls=_dry_run(model, device, shape)
    )


def _dry_run(
    model: LoadedModel, device: torch.device, shape: tuple[int, int, int]
) -> list[LayerCall]:
    try:
        return observe(model.module, dry_batch(model, device, shape))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        size = "×".join(str(n) for n in shape)
        raise ConfigError(
            f"model: the dry batch of two {size} images failed: {type(error).__name__}: {error}; "
            "check model.transform and model.arguments"
        ) from error


def dry_batch(
    model: LoadedModel, device: torch.device, shape: tuple[int, int, int]
) -> torch.Tensor:
    """Return two normalised images of noise, always the same."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, size=(DRY_BATCH, *shape), dtype=np.uint8)
    return model.transform.normalize(torch.from_numpy(noise).to(device))
