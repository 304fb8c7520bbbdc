"""Extractions of modules that a test made, on several threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.loader import Loader
from pipeline.extraction.settings import Extraction
from pipeline.models.base import ModelBundle, ModelSource
from pipeline.models.transforms import Transform


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads, hence lanes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
        assert torch.get_num_threads() == count  # put back by whatever ran inside
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Given(ModelSource):
    """A module that the test made."""

    name: str = "given"
    weights: str | None = None
    module: Any = field(default=None, metadata={"recorded": False})

    def build(self, seed: int) -> ModelBundle:
        """See `ModelSource.build`."""
        transform = Transform(resize=(16, 16), crop=None)
        return ModelBundle(module=self.module, transform=transform)


def extraction(module: nn.Module, path: Path, **changes: object) -> Extraction:
    values: dict[str, object] = {
        "model": Given(module=module),
        "dataset": Synthetic(samples=23),
        "layers": LayerSelector(include=("0", "1")),
        "loader": Loader(batch_size=2),
        "archive": str(path),
        "device": "cpu",
    }
    return Extraction(**(values | changes))  # type: ignore[arg-type]
