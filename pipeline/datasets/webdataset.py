"""WebDataset shards: tar files whose members `key.jpg`, `key.cls`, … form a sample."""

import json
import logging
import os
import re
import tarfile
from collections.abc import Container, Iterator, Mapping
from glob import glob
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.common.configured import configured
from pipeline.common.errors import ConfigError, one_line, plural, reraised
from pipeline.common.paths import PathTexts
from pipeline.datasets.adapter import label_in, numbered
from pipeline.datasets.base import ImageDataset, readable_name
from pipeline.datasets.raster import image_endings
from pipeline.datasets.samples import Images
from pipeline.datasets.sequence import labelled
from pipeline.datasets.tar_samples import Members, TarImages, samples_in, text_of

log = logging.getLogger(__name__)

_LABEL_ENDINGS = (".cls", ".label", ".json", ".txt")  # .txt may be a caption
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)(?:\.\.0*([1-9]\d*))?")


@configured
class WebDataset(ImageDataset):
    """Samples of uncompressed tar files, in the order of the files and of their members.

    A sample's id is its key; if an earlier shard has the same key, the shard's name is put in front
    (`train-01/0042`). Samples without an image are skipped with a warning.

    Attributes:
        shards: paths, globs or brace expressions such as `data/{000..010}.tar` or `{a,b}.tar`.
        image_ending: e.g. `.jpg`; empty uses a sample's only image, or the only one whose ending
            has one dot (`a.jpg` beside `a.seg.png`).
        key_until: where the key of a member's name ends: `first_dot`, as in WebDataset, or
            `last_dot`, which makes `a.1.jpg` and `a.2.jpg` two samples.
    """

    type_key: ClassVar[str] = "webdataset"

    shards: PathTexts = ()
    image_ending: str = ""
    key_until: Literal["first_dot", "last_dot"] = "first_dot"

    def reads(self) -> dict[str, str]:
        paths = islice(chain.from_iterable(map(expand_braces, self.shards)), 10_000)
        return {f"dataset.shards[{i}]": path for i, path in enumerate(paths)}

    def open(self) -> Images:
        samples: dict[str, tuple[str, Any]] = {}  # id → path, label
        extents: list[tuple[Path, int, int]] = []
        without_image: list[str] = []
        endings: set[str] = set()
        for path in self._paths():
            members_of = samples_in(path, last_dot=self.key_until == "last_dot")
            endings |= {ending for members in members_of.values() for ending in members}
            for key, image in self._images(path, members_of):
                if len(samples) == self.limit:
                    break
                if image is None:
                    without_image.append(f"{path}#{key}")
                    continue
                name = _unused(readable_name(key), path, samples)
                label = _label(path, members_of[key])
                samples[name] = readable_name(f"{path}#{key}"), label
                extents.append((path, image.offset_data, image.size))
            if len(samples) == self.limit:
                break
        if not samples:
            names = f"the members end in {', '.join(sorted(endings)[:12])}"
            names = names if endings else "no member is named like key.jpg"
            raise ConfigError(
                f"dataset.{'image_ending' if self.image_ending else 'shards'}: no images in "
                f"{', '.join(self.shards)}; {names}"
            )
        if without_image:
            log.warning(
                "skipped %s without an image, such as %s",
                plural(len(without_image), "sample"),
                one_line(without_image[0]),
            )
        labels = numbered([label for _, label in samples.values()])
        paths = [path for path, _ in samples.values()]
        return TarImages(labelled(labels, list(samples), paths), extents)

    def _paths(self) -> list[Path]:
        if not self.shards:
            raise ConfigError(
                "dataset.shards: no tar files are set; use e.g. 'dataset.shards=[data/*.tar]'"
            )
        paths: dict[Path, None] = {}
        for pattern in self.shards:
            literal = os.path.isfile(pattern)  # noqa: PTH113 - raises nothing for long braces
            for text in [pattern] if literal else expand_braces(pattern):
                matches = _matching(text)
                if not matches:
                    origin = f" (of {pattern})" if text != pattern else ""
                    raise ConfigError(f"dataset.shards: no file matches {text}{origin}")
                for path in matches:
                    if path in paths:
                        raise ConfigError(f"dataset.shards: {path} is listed twice")
                    paths[path] = None
        return list(paths)

    def _images(
        self, path: Path, members_of: Mapping[str, Members]
    ) -> Iterator[tuple[str, tarfile.TarInfo | None]]:
        """Yield every key of a shard with its image, or None for a sample without one."""
        if self.image_ending:
            selected = {"." + self.image_ending.lower().lstrip(".")}
        else:
            endings = {ending for members in members_of.values() for ending in members}
            selected = {e for e in endings if f".{e.rpartition('.')[2]}" in image_endings()}
            selected = {e for e in selected if e.count(".") == 1} or selected
        for key, members in members_of.items():
            images = [ending for ending in members if ending in selected]
            if len(images) > 1:
                raise ConfigError(
                    f"dataset.image_ending: {path}: sample {key!r} has several images "
                    f"({', '.join(images)}); choose one, e.g. dataset.image_ending={images[0]}, or "
                    "set dataset.key_until=last_dot if each is a separate sample"
                )
            yield key, members[images[0]] if images else None


def _unused(key: str, shard: Path, taken: Container[str]) -> str:
    """Return the key with the shortest end of its shard's path that makes it unique."""
    parts = shard.absolute().with_suffix("").parts
    names = (readable_name("/".join((*parts[n:], key))) for n in range(len(parts), 0, -1))
    return next((name for name in names if name not in taken), f"{shard}#{key}")


def _label(path: Path, members: Members) -> Any:
    for ending in _LABEL_ENDINGS:
        if ending in members:
            text = text_of(path, members[ending])
            label = _json_label(text) if ending == ".json" else text
            if label is not None:
                return label
    return None


def _json_label(text: str) -> Any:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return label_in(content) if isinstance(content, dict) else None


def _matching(text: str) -> list[Path]:
    path = Path(text).expanduser()
    with reraised(f"dataset.shards: {path}", of=OSError):
        if path.exists():
            return [path]
    return sorted(map(Path, glob(str(path), recursive=True, include_hidden=True)))  # noqa: PTH207


def expand_braces(text: str) -> Iterator[str]:
    """Yield the expansions of a brace expression, in a shell's order.

    >>> list(expand_braces("{a,b-{08..10}}.tar"))
    ['a.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    for start in (match.start() for match in re.finditer(r"\{", text)):
        depth, cuts = 0, [start]
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0 or (depth == 1 and text[position] == ","):
                cuts.append(position)
            if depth == 0:
                break
        parts = [text[first + 1 : last] for first, last in pairwise(cuts)]
        numbers = _NUMBERS.fullmatch(parts[0]) if len(parts) == 1 and depth == 0 else None
        if depth == 0 and (numbers or len(parts) > 1):
            for part in _counted(numbers) if numbers else chain(*map(expand_braces, parts)):
                for rest in expand_braces(text[cuts[-1] + 1 :]):
                    yield f"{text[:start]}{part}{rest}"
            return
    yield text


def _counted(numbers: re.Match[str]) -> Iterator[str]:
    first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1)
    padded = any(len(text) > 1 and text[0] == "0" for text in numbers.group(1, 2))
    width = max(map(len, numbers.group(1, 2))) if padded else 0
    down = last < first
    for number in range(first, last + (-1 if down else 1), -step if down else step):
        yield f"{number:0{width}d}"
