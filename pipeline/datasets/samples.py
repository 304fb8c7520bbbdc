"""Samples: the items of a dataset in order, and access to their images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from pipeline.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One dataset item, without its pixels.

    Attributes:
        id: unique in the dataset and the same on every run and machine.
        label: class number, a 64-bit integer; -1 for an unlabelled sample.
        label_name: class name; may be empty.
        path: path of the image file; empty for other sources.
    """

    id: str
    label: int = -1
    label_name: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.label, (int, np.integer)) and -(2**63) <= self.label < 2**63):
            raise ConfigError(
                f"dataset: sample {self.id!r} has label {self.label!r}, not a 64-bit "
                "integer; use label_name for other labels"
            )


class Images(Protocol):
    """An opened dataset; it is pickled to the DataLoader workers."""

    @property
    def samples(self) -> Sequence[Sample]:
        """All items in order: row i of the archive is item i."""
        ...

    def read(self, index: int) -> bytes | Image.Image:
        """Return item `index`: an encoded image file, or a Pillow image.

        Raises:
            SampleError: when the item cannot be read.
        """
        ...


@dataclass(frozen=True)
class Subset:
    """The part of an opened dataset that a run uses: its first samples, checked."""

    images: Images
    samples: Sequence[Sample]

    def read(self, index: int) -> bytes | Image.Image:
        return self.images.read(index)
