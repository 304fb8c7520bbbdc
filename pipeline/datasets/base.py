"""What every image dataset is.

A configuration that opens into an ordered list of samples and a way to read one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from PIL import Image

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One dataset item, without its pixels.

    Attributes:
        id: unique in the dataset and the same on every run and machine.
        label: class number, -1 where there is none.
        label_name: class name, empty where there is none.
        path: where the image came from, empty where it is no file.
    """

    id: str
    label: int = -1
    label_name: str = ""
    path: str = ""


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


@dataclass(frozen=True, kw_only=True)
class ImageDataset(ABC):
    """One source of images.

    Attributes:
        limit: use only the first so many samples.
    """

    safe_arguments: ClassVar[frozenset[str]] = frozenset()
    """The `arguments` that an archive may set again without being trusted."""

    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")

    def reads(self) -> dict[str, str]:
        """Return configuration key → path of everything on this machine that it names."""
        root = str(getattr(self, "root", ""))
        return {"dataset.root": root} if root else {}

    def fetches(self) -> str:
        """Return what it may fetch from the network; empty: nothing."""
        return ""

    @abstractmethod
    def open(self) -> Images:
        """Return the opened dataset, its samples not yet limited.

        Raises:
            ConfigError: when the source is missing or holds no images.
        """


@dataclass(frozen=True)
class Selected:
    """The part of an opened dataset that a run uses: its first samples, checked."""

    images: Images
    samples: Sequence[Sample]

    def read(self, index: int) -> bytes | Image.Image:
        """See `Images.read`."""
        return self.images.read(index)


def open_dataset(dataset: ImageDataset) -> Selected:
    """Open a dataset, apply its limit and check that it can be archived.

    Raises:
        ConfigError: when it is empty, an id occurs twice or a text cannot be stored.
    """
    images = dataset.open()
    samples = images.samples if dataset.limit is None else images.samples[: dataset.limit]
    if not samples:
        raise ConfigError("dataset: there are no images in it")
    twice = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        raise ConfigError(f"dataset: the id {twice[0]!r} occurs more than once; ids must be unique")
    for sample in samples:
        for text in (sample.id, sample.label_name, sample.path):
            if "\0" in text or not storable(text) or (text is sample.id and not text):
                raise ConfigError(
                    f"dataset: {text!r} cannot be stored as a sample's id, label or path "
                    "(it is empty, or holds NUL or half a character)"
                )
    return Selected(images, samples)


def content_digest(selected: Selected) -> str | None:
    """Return a digest of the images' content, where the source can tell without decoding.

    A resumed extraction must find the same images; sources of generated pictures are told apart by
    their configuration instead.
    """
    digest = getattr(selected.images, "digest", None)
    return str(digest(len(selected.samples))) if digest is not None else None


def storable(text: str) -> bool:
    """Tell whether `text` is valid Unicode (file names need not be)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def readable_name(name: str) -> str:
    r"""Return a file name as valid Unicode: bytes that are none become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
