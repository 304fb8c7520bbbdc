"""WebDataset shards: tar files whose members `key.jpg`, `key.cls`, … belong together.

Read with Python's `tarfile`: one pass over the headers gives every sample's place, then samples are
read at random, so that order, length and workers are as for any other dataset.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.datasets.adapter import as_label, numbered
from pipeline.datasets.base import ImageDataset, readable_name
from pipeline.datasets.files import image_endings
from pipeline.datasets.sequence import digest_of
from pipeline.foundation.configured import Texts, configured
from pipeline.foundation.errors import ConfigError, SampleError, one_line
from pipeline.inputs.samples import Images, Sample

_LABEL_ENDINGS = (".cls", ".label", ".txt")


@dataclass(frozen=True)
class TarImages:
    """An opened dataset: `places[i]` is the tar file, offset and size of image i."""

    samples: Sequence[Sample]
    places: Sequence[tuple[Path, int, int]]

    def read(self, index: int) -> bytes:
        """See `Images.read`."""
        path, offset, size = self.places[index]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise SampleError(f"{path}: {error.strerror}") from error
        if len(content) != size:
            raise SampleError(f"{path}: ends within {self.samples[index].id}")
        return content

    def digest(self, count: int) -> str:
        """See `base.content_digest`: over every image's bytes, in order."""
        return digest_of(self.read(index) for index in range(count))


@configured
class WebDataset(ImageDataset):
    """Samples of uncompressed tar files, in the order of the files and of their members; id = key.

    Attributes:
        shards: paths, globs or brace ranges such as `data/{000..010}.tar`.
        image_ending: e.g. `.jpg`, where a sample has several images; empty takes the first.
    """

    kind: ClassVar[str] = "webdataset"

    shards: Texts = ()
    image_ending: str = ""

    def reads(self) -> dict[str, str]:
        """See `ImageDataset.reads`."""
        return {f"dataset.shards[{i}]": path for i, path in enumerate(self.shards)}

    def open(self) -> Images:
        """See `ImageDataset.open`."""
        samples: list[tuple[str, str, tuple[int, str]]] = []
        places: list[tuple[Path, int, int]] = []
        for path in self._paths():
            for key, members in _groups(path).items():
                image = self._image(members)
                if image is None:
                    continue
                labels = [members[ending] for ending in _LABEL_ENDINGS if ending in members]
                text: str | int | None = _content(path, labels[0]) if labels else None
                if text is None and ".json" in members:
                    text = _label_in_json(_content(path, members[".json"]))
                samples.append((key, f"{path}#{key}", as_label(text)))
                places.append((path, image.offset_data, image.size))
        if not samples:
            raise ConfigError(f"dataset.shards: no images in {', '.join(self.shards)}")
        numbers = numbered([label for _, _, label in samples])
        return TarImages(
            [
                Sample(
                    id=readable_name(key), label=label, label_name=name, path=readable_name(place)
                )
                for (key, place, _), (label, name) in zip(samples, numbers, strict=True)
            ],
            places,
        )

    def _paths(self) -> list[Path]:
        if not self.shards:
            raise ConfigError(
                "dataset.shards: name the tar files, e.g. 'dataset.shards=[data/*.tar]'"
            )
        found: list[Path] = []
        for pattern in self.shards:
            paths = [path for text in expand_braces(pattern) for path in _matching(text)]
            if not paths:
                raise ConfigError(f"dataset.shards: no file matches {pattern}")
            found += [Path(path) for path in paths]
        return found

    def _image(self, members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
        if self.image_ending:
            return members.get(self.image_ending)
        endings = image_endings()
        return next(
            (m for ending, m in members.items() if f".{ending.split('.')[-1]}" in endings), None
        )


def _matching(text: str) -> list[Path]:
    path = Path(text).expanduser()
    return sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))


def _groups(path: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return key → ending → member, in the file's order.

    A key ends at the first dot of its name.
    """
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as archive:  # no compression: members have a place
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                base, dot, ending = name.partition(".")
                if not member.isreg() or not base or not dot:
                    continue
                key = f"{folder}/{base}" if folder else base
                groups.setdefault(key.removeprefix("./"), {})[f".{ending.lower()}"] = member
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(
            f"dataset.shards: {path} is no readable uncompressed tar file ({one_line(error)})"
        ) from error
    return groups


def _content(path: Path, member: tarfile.TarInfo) -> str:
    with path.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(min(member.size, 2**20)).decode("utf-8", "replace").strip()


def _label_in_json(text: str) -> str | int | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    label = content.get("label", content.get("cls")) if isinstance(content, dict) else None
    return label if isinstance(label, (str, int)) else None


def expand_braces(text: str) -> list[str]:
    """Return the texts that numeric brace ranges stand for.

    >>> expand_braces("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if found is None:
        return [text]
    width = len(found[1])
    numbers = range(int(found[1]), int(found[2]) + 1)
    parts = [
        f"{text[: found.start()]}{number:0{width}d}{text[found.end() :]}" for number in numbers
    ]
    return [expanded for part in parts for expanded in expand_braces(part)]
