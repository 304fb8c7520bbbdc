"""Generated images: any number, identical on every machine, for tests and benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.common.configured import Natural, Positive, configured
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.samples import Images, Sample


@dataclass(frozen=True)
class SyntheticImages:
    """An opened `Synthetic` dataset."""

    samples: Sequence[Sample]
    height: int
    width: int
    seed: int

    def read(self, index: int) -> Image.Image:
        """Return image `index`: coloured waves and a disc, with parameters from (seed, index)."""
        random = np.random.default_rng((self.seed, index))
        y, x = np.mgrid[0 : self.height, 0 : self.width]
        y, x = y / self.height, x / self.width
        frequency, phase = random.uniform(1, 9, size=(3, 2)), random.uniform(0, 2 * np.pi, size=3)
        waves = np.sin(
            2 * np.pi * (frequency[:, 0, None, None] * x + frequency[:, 1, None, None] * y)
            + phase[:, None, None]
        )
        centre, radius = random.uniform(0.2, 0.8, size=2), random.uniform(0.1, 0.3)
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        picture = np.where(disc, random.uniform(0, 1, size=(3, 1, 1)), (waves + 1) / 2)
        return Image.fromarray(np.rint(picture * 255).astype(np.uint8).transpose(1, 2, 0))


@configured
class Synthetic(ImageDataset):
    """`samples` images of `height` × `width`, labelled with `classes` classes in rotation."""

    samples: Positive = 16
    height: Positive = 240
    width: Positive = 320
    classes: Positive = 4
    seed: Natural = 0

    def open(self) -> Images:
        samples = [
            Sample(
                id=f"synthetic-{i:06d}",
                label=i % self.classes,
                label_name=f"class {i % self.classes}",
            )
            for i in range(self.samples)[: self.limit]
        ]
        return SyntheticImages(samples, self.height, self.width, self.seed)
