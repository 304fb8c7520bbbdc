"""Extractions of modules that a test made, on several threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.loader import Loader
from pipeline.extraction.settings import Extraction
from pipeline.models.transforms import TransformOverride
from tests.helpers.given_modules import Given


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


def extraction(module: nn.Module, path: Path, **changes: object) -> Extraction:
    values: dict[str, object] = {
        "model": Given(module, transform=TransformOverride(resize=(16, 16))),
        "dataset": Synthetic(samples=23, height=24, width=24),
        "layers": LayerSelector(include=("0", "1")),
        "loader": Loader(batch_size=2),
        "archive": str(path),
        "device": "cpu",
    }
    return Extraction(**(values | changes))  # type: ignore[arg-type]
