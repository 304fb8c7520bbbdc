"""Extractions of a module as it is."""

from pathlib import Path

from PIL import Image
from torch import nn

from pipeline.capture.selector import LayerSelector
from pipeline.datasets.sequence import FromSequence
from pipeline.extraction.loader import Loader
from pipeline.extraction.settings import Extraction
from pipeline.models.base import ModelBundle, ModelSource
from pipeline.models.transforms import Transform
from tests.conftest import photo, tiny_extraction

IMAGES = [Image.fromarray(photo(seed, (8, 8))) for seed in range(5)]


TRANSFORM = Transform(resize=None, crop=None, mean=(0.5,) * 3, std=(0.5,) * 3)


class Given(ModelSource):
    """A module as it is, with random weights by the seed 0."""

    def __init__(self, module: nn.Module, **facts: object) -> None:
        object.__setattr__(self, "module", module)
        super().__init__(name="given", weights=None, **facts)

    def build(self, seed: int) -> ModelBundle:
        return ModelBundle(module=self.module, transform=TRANSFORM)


def extraction(path: Path, module: nn.Module, *layers: str, **facts: object) -> Extraction:
    """Return an extraction of five images in batches of two, the last of one."""
    return tiny_extraction(
        path, model=Given(module, **facts), dataset=FromSequence(items=IMAGES),
        layers=LayerSelector(include=layers), loader=Loader(batch_size=2, num_workers=0),
    )  # fmt: skip
