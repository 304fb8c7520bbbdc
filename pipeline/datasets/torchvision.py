"""Any dataset of torchvision, by class name."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from pipeline.common.configured import configured
from pipeline.common.errors import ConfigError, known, one_line, plural
from pipeline.common.paths import PathText
from pipeline.datasets.adapter import as_label, numbered
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.decoding import read_regular
from pipeline.datasets.files import files_digest
from pipeline.datasets.raster import guarded_pillow
from pipeline.datasets.samples import Images
from pipeline.datasets.sequence import SequenceImages, ids, labelled, labels_of

log = logging.getLogger(__name__)


@configured
class TorchvisionDataset(ImageDataset):
    """A class of `torchvision.datasets`, e.g. `name: CIFAR10`.

    Attributes:
        name: the class.
        root: its folder; leave it empty for classes without one (`FakeData`).
        arguments: its other arguments, e.g. `{train: false, download: true}`.
    """

    type_key: ClassVar[str] = "torchvision"
    safe_arguments: ClassVar[frozenset[str]] = frozenset(
        ("train", "split", "size", "image_size", "num_classes", "random_offset", "download",
         "fold", "version", "year", "image_set", "mode", "partition", "use_bbox", "background")
    )  # fmt: skip

    name: str
    root: PathText = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    def fetches(self) -> str:
        return f"torchvision's {self.name}" if self.arguments.get("download") else ""

    def open(self) -> Images:
        from torchvision import datasets

        known(self.name, datasets.__all__, "dataset.name: torchvision has no dataset")
        root = {"root": self.root} if self.root else {}
        try:
            with _sorted_folders():
                items = getattr(datasets, self.name)(**root, **self.arguments)
            count = len(items)
        except Exception as error:
            text = one_line(error, limit=200) or type(error).__name__
            text = text.replace("download=True", "dataset.arguments.download=true")
            missing = "required positional" in text
            remedy = "; set dataset.root, and others in dataset.arguments" if missing else ""
            raise ConfigError(
                f"dataset: torchvision's {self.name} could not be opened: {text}{remedy}"
            ) from error
        raw_labels = _known_labels(items, count)
        names = getattr(items, "classes", getattr(items, "categories", None))  # Caltech's
        if raw_labels and not _as_in_items(raw_labels, items):
            raw_labels = names = None  # e.g. the category beside a binary target
        if raw_labels is None:
            count = len(range(count)[: self.limit])
            log.info("reading %s of %s once to get the labels", plural(count, "item"), self.name)
            raw_labels = labels_of(_Guarded(items), count)
        labels = numbered(raw_labels)
        if isinstance(names, (list, tuple)):
            texts = [str(name if isinstance(name, str) else name[0]) for name in names]
            labels = [
                (number, texts[number] if not name and 0 <= number < len(texts) else name)
                for number, name in labels
            ]
        samples = labelled(labels, ids(self.name, count))
        if isinstance(items, datasets.DatasetFolder):
            return _FolderImages(samples, items)
        return SequenceImages(samples, _Guarded(items))


@contextmanager
def _sorted_folders() -> Iterator[None]:
    """List folders sorted: torchvision numbers files, and classes, in the file system's order."""
    system: Any = os
    path: Any = Path
    listdir, rglob = os.listdir, Path.rglob
    system.listdir = lambda *args, **options: sorted(listdir(*args, **options))
    path.rglob = lambda *args, **options: iter(sorted(rglob(*args, **options)))
    try:
        yield
    finally:
        system.listdir, path.rglob = listdir, rglob


@dataclass(frozen=True)
class _Guarded:
    """A torchvision dataset, limited to raster formats where it opens files with Pillow."""

    items: Any

    def __getitem__(self, index: int) -> Any:
        with guarded_pillow():
            return self.items[index]


@dataclass(frozen=True)
class _FolderImages(SequenceImages):
    """An opened `DatasetFolder`; files are decoded here unless it has transforms or a loader."""

    def read(self, index: int) -> bytes | Image.Image:
        from torchvision.datasets.folder import default_loader

        if self.items.transforms is None and self.items.loader is default_loader:
            return read_regular(Path(self.items.samples[index][0]))
        with guarded_pillow():
            return super().read(index)

    def digest(self, count: int) -> str:
        return files_digest([Path(path) for path, _ in self.items.samples[:count]])


def _known_labels(items: Any, count: int) -> Sequence[Any] | None:
    """Return the labels that a dataset keeps in memory, or None."""
    for name in ("targets", "labels", "_labels", "y"):
        labels: Any = getattr(items, name, None)
        listed = hasattr(labels, "__len__") and getattr(labels, "ndim", 1) == 1  # QMNIST's is 2
        if listed and len(labels) == count:
            labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
            return [None if isinstance(label, str) else label for label in labels]  # files
    return None


def _as_in_items(labels: Sequence[Any], items: Any) -> bool:
    """Return whether the first and last item have their label; items without one have any."""
    from torch.utils.data import Subset

    ends, guarded = [0, len(labels) - 1], _Guarded(items)
    targets = labels_of(Subset(guarded, ends), 2)  # type: ignore[arg-type]
    for target in targets:
        if isinstance(target, Image.Image):
            target.close()
    return all(
        as_label(target) in ((-1, ""), as_label(labels[i]))
        for i, target in zip(ends, targets, strict=True)
    )
