"""Picture files: one folder per renderer, written whole, and drawn again only when they must be.

pictures/<renderer>/<sample>.png            pictures of a whole sample
pictures/<renderer>/<layer>/<sample>.png    pictures of one layer of a sample
pictures/<renderer>/drawn-with.json what they were drawn with
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import __version__
from pipeline.archive.reader import Archive, StoredSample
from pipeline.durable import write_bytes, write_json
from pipeline.names import folder_name, sample_stem
from pipeline.renderers.base import Array, Picture, Renderer

_NOTES = ".drawn"
_OURS = re.compile(r"\d{6,}-[0-9a-f]{12}\.(png|webp|jpeg)|fit-.*\.npz")


class PictureFormat(StrEnum):
    """File format of pictures: PNG and WebP keep every colour exactly, JPEG is smaller."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


@dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture file.

    Attributes:
        renderer: its name in the configuration.
        layer: what it shows, None where it shows the whole sample.
        path: relative to the output folder.
        title: what it is, for pictures that are not of a sample.
    """

    renderer: str
    layer: str | None
    path: Path
    title: str = ""


class PictureFolder:
    """The pictures of one renderer of one archive."""

    def __init__(
        self, root: Path, name: str, renderer: Renderer, archive: Archive, kind: PictureFormat
    ) -> None:
        """Keep the pictures that are there if they were drawn with the same options from the same
        archive by the same version; delete them otherwise.
        """
        self.name = name
        self.renderer = renderer
        self.place = Path("pictures") / folder_name(name)
        self._root = root
        self._kind = kind
        self._layers = [layer.name for layer in archive.layers.values()]
        note = {
            "featuremaps": __version__,
            "archive": archive.manifest.fingerprint,
            "renderer": f"{type(renderer).__module__}.{type(renderer).__qualname__}",
            "options": json.loads(json.dumps(asdict(renderer), default=str)),
        }
        folder, kept = root / self.place, root / _NOTES / f"{folder_name(name)}.json"
        folder.mkdir(parents=True, exist_ok=True)
        if _read(kept) != note:
            for path in folder.rglob("*"):
                if _OURS.fullmatch(path.name):
                    path.unlink()
            kept.parent.mkdir(exist_ok=True)
            write_json(kept, note)

    def of(self, sample: StoredSample) -> list[DrawnPicture]:
        """Return the pictures that a sample has when it is drawn."""
        layers: Sequence[str | None] = self._layers if self.renderer.per_layer else [None]
        return [
            DrawnPicture(renderer=self.name, layer=layer, path=self._path(layer, sample))
            for layer in (layers if self.renderer.of_samples else [])
        ]

    def there(self, sample: StoredSample) -> list[DrawnPicture] | None:
        """Return a sample's pictures if all of them exist, else None."""
        found = self.of(sample)
        return found if all((self._root / picture.path).is_file() for picture in found) else None

    def write(self, pictures: Iterator[Picture], sample: StoredSample) -> list[DrawnPicture]:
        """Write a sample's pictures."""
        drawn = []
        for picture in pictures:
            path = self._path(picture.layer, sample)
            self._save(path, picture.rgb)
            drawn.append(DrawnPicture(renderer=self.name, layer=picture.layer, path=path))
        return drawn

    def write_of_archive(self, pictures: Iterator[Picture]) -> list[DrawnPicture]:
        """Write the pictures of the archive as a whole."""
        drawn = []
        for picture in pictures:
            stem = folder_name(picture.layer or "all")
            path = self.place / f"{stem}.{self._kind.value}"
            self._save(path, picture.rgb)
            drawn.append(
                DrawnPicture(
                    renderer=self.name, layer=picture.layer, path=path, title=picture.title
                )
            )
        return drawn

    def _path(self, layer: str | None, sample: StoredSample) -> Path:
        folder = self.place if layer is None else self.place / folder_name(layer)
        return folder / f"{sample_stem(sample.index, sample.id)}.{self._kind.value}"

    def _save(self, path: Path, rgb: Array) -> None:
        (self._root / path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._root / path, encode(rgb, self._kind), durable=False)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def encode(rgb: Array, kind: PictureFormat) -> bytes:
    """Return a picture, uint8 `(height, width, rgb)`, as the content of a file."""
    settings: dict[PictureFormat, dict[str, Any]] = {
        PictureFormat.PNG: {"compress_level": 3},
        PictureFormat.WEBP: {"lossless": True, "quality": 20, "method": 1},
        PictureFormat.JPEG: {"quality": 92},
    }
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind.value, **settings[kind])
    return buffer.getvalue()
