"""What every image dataset is: a configuration that opens into samples and a way to read them."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pipeline.common.configured import Positive, configured
from pipeline.common.errors import ConfigError
from pipeline.datasets.samples import Images, Sample, Subset


@configured
class ImageDataset(ABC):
    """One source of images.

    Attributes:
        limit: use the first samples only, this many.
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
        """Return the opened dataset.

        It may hold more samples than `limit`, but need not read more. A sample is the same whatever
        the limit is; only where all labels would have to be read to number names, names are
        numbered among the samples in use.

        Raises:
            ConfigError: when the source is missing or holds no images.
        """


def open_dataset(dataset: ImageDataset) -> Subset:
    """Open a dataset, apply its limit and check that it can be archived.

    Ids and label names are stored in Unicode's composed form (NFC), so that the same files have the
    same ids on every file system.
    """
    images = dataset.open()
    samples = [
        sample
        if sample.id.isascii() and sample.label_name.isascii()
        else replace(sample, id=nfc(sample.id), label_name=nfc(sample.label_name))
        for sample in images.samples[: dataset.limit]
    ]
    if not samples:
        raise ConfigError("dataset: there are no images in it")
    _check_unique(images.samples[: dataset.limit], samples)
    for sample in samples:
        for text in (sample.id, sample.label_name, sample.path):
            if "\0" in text or not storable(text) or (text is sample.id and not text):
                raise ConfigError(
                    f"dataset: {text!r} cannot be stored as a sample's id, label or path "
                    "(it is empty, or holds NUL or half a character)"
                )
    return Subset(images, samples)


def _check_unique(given: Sequence[Sample], samples: Sequence[Sample]) -> None:
    first: dict[str, str] = {}
    for before, sample in zip(given, samples, strict=True):
        if sample.id in first and first[sample.id] == before.id:
            raise ConfigError(
                f"dataset: id {sample.id!r} occurs more than once; ids must be unique"
            )
        if sample.id in first:
            raise ConfigError(
                f"dataset: two ids look like {sample.id!r} and differ only in their Unicode form "
                f"({first[sample.id]!a}, {before.id!a}); rename one of them"
            )
        first[sample.id] = before.id


def content_digest(selected: Subset) -> str | None:
    """Return a digest of the images' content, where the source can tell without decoding.

    A resumed extraction must find the same images; sources of generated pictures are told apart by
    their configuration instead.
    """
    digest = getattr(selected.images, "digest", None)
    return str(digest(len(selected.samples))) if digest is not None else None


def nfc(text: str) -> str:
    """Return a text in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text)


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
