"""Samples: the items of a dataset, in order, and a way to read each one's image."""

from __future__ import annotations

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
        label: class number, a 64-bit integer; -1 where there is none.
        label_name: class name, empty where there is none.
        path: where the image came from, empty where it is no file.
    """

    id: str
    label: int = -1
    label_name: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.label, (int, np.integer)) and -(2**63) <= self.label < 2**63):
            raise ConfigError(
                f"dataset: sample {self.id!r} has label {self.label!r}; a label is a 64-bit "
                "integer, other labels are names (label_name)"
            )


class Images(Protocol):
    """An opened dataset; travels to the loader's workers."""

    @property
    def samples(self) -> Sequence[Sample]:
        """Every item in order: row i of the archive is item i."""
        ...

    def read(self, index: int) -> bytes | Image.Image:
        """Return item `index`: an encoded image file, or a Pillow image.

        Raises:
            SampleError: when it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Subset:
    """The part of an opened dataset that a run uses: its first samples, checked."""

    images: Images
    samples: Sequence[Sample]

    def read(self, index: int) -> bytes | Image.Image:
        """See `Images.read`."""
        return self.images.read(index)
