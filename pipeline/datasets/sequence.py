"""Any Python sequence or iterable of images, for programs and for other sources."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from pipeline.common.configured import Texts, configured
from pipeline.common.errors import ConfigError, plural
from pipeline.datasets.adapter import as_image, numbered, split_item
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.raster import guarded_pillow, refuse_other_formats
from pipeline.datasets.samples import Images, Sample


@dataclass(frozen=True)
class SequenceImages:
    """An opened dataset over any object with `len()` and `[i]`."""

    samples: Sequence[Sample]
    items: Any
    image: str | None = None

    def read(self, index: int) -> bytes | Image.Image:
        return as_image(split_item(self.items[index], image=self.image)[0])

    def digest(self, count: int) -> str:
        return digest_of(_content(self, index) for index in range(count))


def digest_of(contents: Iterable[bytes]) -> str:
    """Return the sha256 over the sha256 of each item's content."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _content(images: Images, index: int) -> bytes:
    try:
        image = images.read(index)
        if isinstance(image, bytes):
            return image
        refuse_other_formats(image)
        with guarded_pillow():  # Pillow may load it lazily
            return repr((image.mode, image.size)).encode() + image.tobytes()
    except Exception:  # noqa: BLE001 - foreign datasets raise anything; the run reports it
        return b"unreadable"


@configured
class FromSequence(ImageDataset):
    """Images that a program holds: `FromSequence(items=my_dataset)`.

    Attributes:
        items: a map-style dataset, sequence or array (indexed for every sample), or any other
            iterable (kept in memory). Items are images, `(image, label)` or mappings; see
            `adapter.as_image`.
        ids: one per item; by default `item-000000`, `item-000001`, ….
    """

    type_key: ClassVar[str] = "sequence"

    items: Any = field(default=(), metadata={"recorded": False})
    ids: Texts = ()

    def open(self) -> Images:
        items = self.items
        if isinstance(items, Mapping):
            raise ConfigError(
                "dataset.items: a mapping has no rows; use items=list(images.values()) and "
                "ids=list(images)"
            )
        if isinstance(items, (set, frozenset)):
            raise ConfigError("dataset.items: a set has no fixed order; use items=sorted(…)")
        shape: Any = getattr(items, "shape", ())
        if isinstance(items, (str, bytes)) or (len(shape) == 3 and shape[2] in (3, 4)):
            raise ConfigError("dataset.items: a single image, path or file; use items=[…]")
        if hasattr(items, "iloc"):  # pandas: [i] is the row whose index is i, not row i
            items = items.to_dict("records") if items.ndim == 2 else list(items)
        if getattr(items, "batch_sampler", None) is not None:
            raise ConfigError("dataset.items: a DataLoader yields batches; use its .dataset")
        # torch's may have a length, and inherits a `[i]` that raises.
        streamed = "IterableDataset" in [kind.__name__ for kind in type(items).__mro__]
        sized = hasattr(items, "__len__") or shape  # Zarr's have no length
        if streamed or not (hasattr(items, "__getitem__") and sized):
            if not isinstance(items, Iterable):
                raise ConfigError(
                    f"dataset.items: {type(items).__name__} has no length; define __len__"
                )
            items = [_own(item) for item in islice(items, self.limit)]
        count = len(items) if hasattr(items, "__len__") else shape[0]
        rows = range(count)[: self.limit]
        names = self.ids[: self.limit] or ids("item", len(rows))
        if len(names) != len(rows):
            raise ConfigError(
                f"dataset.ids: {plural(len(self.ids), 'id')} for {plural(count, 'item')}"
            )
        labels = numbered(labels_of(items, len(rows)))
        return SequenceImages(labelled(labels, names), items)


def _own(item: Any) -> Any:
    """Return an item in its own memory: an iterator may yield the same array or image again."""
    if isinstance(item, Mapping):
        return {key: _own(value) for key, value in item.items()}
    if isinstance(item, (tuple, list)):
        return [_own(value) for value in item]
    if hasattr(item, "clone"):
        return item.detach().clone()
    frame = isinstance(item, Image.Image) and getattr(item, "n_frames", 1) > 1
    return item.copy() if frame or isinstance(item, np.ndarray) else item


def labels_of(items: Any, count: int) -> list[Any]:
    """Return the labels of the first items; None for an item that cannot be read."""
    labels = []
    for i in range(count):
        try:
            labels.append(split_item(items[i])[1])
        except ConfigError:
            raise
        except Exception:  # noqa: BLE001 - foreign datasets raise anything; the run reports it
            labels.append(None)
    return labels


def ids(prefix: str, count: int) -> list[str]:
    """Return `prefix-000000`, `prefix-000001`, …."""
    return [f"{prefix}-{i:06d}" for i in range(count)]


def labelled(
    labels: Sequence[tuple[int, str]], names: Sequence[str], paths: Sequence[str] = ()
) -> list[Sample]:
    """Return samples with these ids, labels and paths."""
    paths = paths or [""] * len(names)
    return [
        Sample(id=name, label=number, label_name=label, path=path)
        for name, (number, label), path in zip(names, labels, paths, strict=True)
    ]
