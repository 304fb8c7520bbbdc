"""Base class of image datasets: a configuration that opens into samples and reads them."""

import unicodedata
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

from pipeline.common.configured import Positive, configured
from pipeline.common.errors import ConfigError
from pipeline.datasets.samples import Images, Sample, Subset


@configured
class ImageDataset(ABC):
    """One source of images.

    Attributes:
        limit: number of samples to use, counted from the first.
    """

    type_key: ClassVar[str] = ""
    """The type's name in files; empty: the class name in snake case."""

    safe_arguments: ClassVar[frozenset[str]] = frozenset()
    """The `arguments` that an untrusted archive may set."""

    limit: Positive | None = None

    def reads(self) -> dict[str, str]:
        """Return configuration key → path of every local file or folder that the dataset reads."""
        root = str(getattr(self, "root", ""))
        return {"dataset.root": root} if root else {}

    def fetches(self) -> str:
        """Return what the dataset may download; empty: nothing."""
        return ""

    @abstractmethod
    def open(self) -> Images:
        """Return the opened dataset.

        The result may hold more samples than `limit`. A sample does not depend on the limit, except
        that sources that must read every label number names among the samples in use only.

        Raises:
            ConfigError: when the source is missing or contains no images.
        """


def open_dataset(dataset: ImageDataset) -> Subset:
    """Open a dataset, apply its limit and check that its samples can be archived.

    Ids and label names are stored in Unicode's composed form (NFC): the same files have the same
    ids on every file system.
    """
    images = dataset.open()
    samples: list[Sample] = []
    original_ids: dict[str, str] = {}
    for original in images.samples[: dataset.limit]:
        sample = original
        if not (sample.id.isascii() and sample.label_name.isascii()):
            sample = replace(sample, id=nfc(sample.id), label_name=nfc(sample.label_name))
        if original_ids.get(sample.id) == original.id:
            raise ConfigError(
                f"dataset: id {sample.id!r} occurs more than once; ids must be unique"
            )
        if sample.id in original_ids:
            raise ConfigError(
                f"dataset: two ids look like {sample.id!r} and differ only in their Unicode form "
                f"({original_ids[sample.id]!a}, {original.id!a}); rename one of them"
            )
        for text in (sample.id, sample.label_name, sample.path):
            valid = text.encode(errors="ignore").decode() == text  # file names need not be
            if "\0" in text or not valid or (text is sample.id and not text):
                raise ConfigError(
                    f"dataset: {text!r} cannot be stored as a sample's id, label or path "
                    "(it is empty, contains NUL or is not valid Unicode)"
                )
        original_ids[sample.id] = original.id
        samples.append(sample)
    if not samples:
        raise ConfigError("dataset: it contains no images")
    return Subset(images, samples)


def content_digest(selected: Subset) -> str | None:
    """Return a digest of the encoded images, or None for sources of generated images.

    A resumed extraction must find the same images; generated ones are identified by their
    configuration.
    """
    digest = getattr(selected.images, "digest", None)
    return str(digest(len(selected.samples))) if digest is not None else None


def nfc(text: str) -> str:
    """Return text in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text)


def readable_name(name: str) -> str:
    r"""Return a file name as valid Unicode: undecodable bytes become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
