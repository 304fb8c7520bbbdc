"""Datasets that kill their process, or fail for a while, for sweeps that must survive it."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.common.errors import SampleError
from pipeline.datasets.samples import Images, Sample
from pipeline.datasets.synthetic import Synthetic


@dataclass(frozen=True, kw_only=True)
class Deadly(Synthetic):
    """Synthetic images; asked for thirteen, it ends its process without a word."""

    def open(self) -> Images:
        """See `ImageDataset.open`."""
        if self.samples == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open()


@dataclass(frozen=True, kw_only=True)
class Fragile(Synthetic):
    """Synthetic images, one of which cannot be read as long as the file `broken` is there.

    Attributes:
        broken: path of that file.
        row: the image.
    """

    broken: str = ""
    row: int = 0

    def open(self) -> Images:
        """See `ImageDataset.open`."""
        return _FragileImages(super().open(), Path(self.broken), self.row)


@dataclass(frozen=True)
class _FragileImages:
    images: Images
    broken: Path
    row: int

    @property
    def samples(self) -> Sequence[Sample]:
        return self.images.samples

    def read(self, index: int) -> bytes | Image.Image:
        if index == self.row and self.broken.exists():
            raise SampleError("the disk has lost it for now")
        return self.images.read(index)
