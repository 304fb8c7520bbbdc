"""A small model with weights by formula, for tests that compute activations independently."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pipeline.common.configured import configured
from pipeline.models.base import DEFAULT, ModelBundle, ModelSource, unknown_weights
from pipeline.models.transforms import Transform

if TYPE_CHECKING:
    from torch import nn


@configured
class TinyModel(ModelSource):
    """conv → bn → in-place ReLU → conv → the same ReLU → average pool → linear, on 16×16 images.

    With `weights: DEFAULT`, every weight follows a formula. Naive hooks capture wrong values before
    a reused in-place ReLU.
    """

    type_key: ClassVar[str] = "tiny"

    name: str = "tiny"

    def build(self, seed: int) -> ModelBundle:
        module = tiny_network()
        path = self.load_weights(module)
        if self.weights == DEFAULT:
            _set_formula_weights(module)
        elif self.weights is not None and path is None:
            raise unknown_weights(self.weights, model="tiny")
        transform = Transform(resize=(16,), crop=(16,), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return ModelBundle(module=module, transform=transform, file=path)


def tiny_network() -> nn.Module:
    """Return the network with torch's random weights."""
    import torch
    from torch import nn

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(4)
            self.relu = nn.ReLU(inplace=True)
            self.conv2 = nn.Conv2d(4, 6, 3, padding=1, stride=2)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(6, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.relu(self.bn1(self.conv1(images)))
            x = self.relu(self.conv2(x))
            scores: torch.Tensor = self.fc(self.pool(x).flatten(1))
            return scores

    return Tiny()


def _set_formula_weights(module: nn.Module) -> None:
    """Set the i-th element x of every tensor to sin(i + 1) / 2; of variances, to 1 + x²."""
    import torch

    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                numbers = torch.sin(torch.arange(1, value.numel() + 1, dtype=torch.float64)) / 2
                numbers = 1 + numbers**2 if name.endswith("running_var") else numbers
                value.copy_(numbers.reshape(value.shape))
