"""Layers of a small network, selected."""

from collections.abc import Mapping

import torch
from torch import nn

from pipeline.capture.axes import Tokens
from pipeline.capture.resolver import Layer, LayerResolver
from pipeline.capture.trace import Trace, compared, record


class Block(nn.Module):
    """A convolution, a reused in-place ReLU and an alias of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.same = self.conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.act(self.conv(x)) - 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.pair = Pair()
        self.unused = nn.Conv2d(8, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, _ = self.pair(self.block(x))
        scores: torch.Tensor = self.head(self.pool(a).flatten(1))
        return scores


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x.argmax(1)


def selection(
    module: nn.Module | None = None,
    size: int = 12,
    *,
    functions: bool = False,
    tokens: Tokens | None = None,
    axes: Mapping[str, str] | None = None,
) -> LayerResolver:
    module = (module or Net()).eval()
    return LayerResolver(
        module,
        traced(module, size, functions=functions),
        image=(3, size, size),
        tokens=tokens or Tokens(),
        declared=axes or {},
    )


def traced(module: nn.Module, size: int, *, functions: bool = False) -> Trace:
    """Run three images through a module, and one of them alone."""
    images = torch.randn(3, 3, size, size)
    several = record(module, images, functions=functions)
    return compared(several, record(module, images[:1], functions=functions, penultimate=True))


def names(layers: list[Layer]) -> list[str]:
    return [layer.name for layer in layers]
