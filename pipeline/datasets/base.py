"""What every image dataset is: a configuration that opens into samples and a way to read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import ClassVar

from pipeline.foundation.configured import Positive, configured
from pipeline.foundation.errors import ConfigError
from pipeline.inputs.samples import Images, Selected


@configured
class ImageDataset(ABC):
    """One source of images.

    Attributes:
        limit: use only the first so many samples.
    """

    kind: ClassVar[str] = ""
    """The name by which files know it; empty: its class's in snake case."""

    safe_arguments: ClassVar[frozenset[str]] = frozenset()
    """The `arguments` that an archive may set again without being trusted."""

    limit: Positive | None = None

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
