"""A module that a program holds."""

import copy
from dataclasses import field
from typing import Any, ClassVar

from pipeline.common.configured import configured
from pipeline.common.errors import reraised
from pipeline.models.base import ModelBundle, ModelSource
from pipeline.models.checkpoint import as_module
from pipeline.models.transforms import Transform


@configured
class FromModule(ModelSource):
    """A module that a program holds: `FromModule(module=my_network)`.

    It is copied, so an extraction does not disturb its training. The default transform is
    ImageNet's (256, 224, its mean and std): set `transform` to the preprocessing of the training.

    Attributes:
        name: a display name; empty uses the class's name.
        module: a torch module, on any device.
    """

    type_key: ClassVar[str] = "module"

    name: str = ""
    weights: str = field(default="in memory", init=False)
    module: Any = field(metadata={"recorded": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name:
            object.__setattr__(self, "name", type(self.module).__name__)

    def build(self, seed: int) -> ModelBundle:
        import torch

        from pipeline.models.weights.loading_report import LoadingReport

        module = as_module(self.module, "model.module")
        left = {  # by a forward pass with gradients; such tensors cannot be copied
            id(value): value.detach()
            for layer in module.modules()
            for value in vars(layer).values()
            if isinstance(value, torch.Tensor) and not value.is_leaf
        }
        remedy = "; define it in a file, and use CheckpointModel"
        with reraised(f"model.module: {self.name} cannot be copied", hint=remedy):
            module = copy.deepcopy(module, left)
        return ModelBundle(module=module, transform=Transform(), report=LoadingReport())
