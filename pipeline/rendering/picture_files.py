"""Picture files: one folder per renderer, written whole, and drawn again only when they must be.

pictures/<renderer>/<sample>.png            pictures of a whole sample
pictures/<renderer>/<alias>/<sample>.png    pictures of one layer of a sample
.drawn/<renderer>.json                      what they were drawn with, and those of the archive

A figure for papers has its picture's name and another ending.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.common.atomic_files import write_bytes, write_json
from pipeline.common.configured import kind_of
from pipeline.rendering.drawing.picture_formats import encode, encode_figure
from pipeline.rendering.file_names import folder_name, layer_folders, sample_stem
from pipeline.rendering.options import FigureFormat, PictureFormat
from pipeline.rendering.renderer import Picture, Renderer

_NOTES = ".drawn"
_OURS = re.compile(r"(\d{6,}-.+|archive-.*)\.(png|webp|jpeg|pdf|svg)|fit-.*\.npz")


@dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture file.

    Attributes:
        renderer: its name in the configuration.
        layer: what it shows, None where it shows the whole sample.
        path: relative to the output folder.
        title: what it is, for pictures that are not of a sample.
        figures: the same as figures for papers, relative to the output folder.
    """

    renderer: str
    layer: str | None
    path: Path
    title: str = ""
    figures: tuple[Path, ...] = ()


class PictureFolder:
    """The pictures of one renderer of one archive."""

    def __init__(
        self,
        root: Path,
        name: str,
        renderer: Renderer,
        archive: Archive,
        kind: PictureFormat,
        figures: Sequence[FigureFormat] = (),
    ) -> None:
        """Keep the pictures that are there if they were drawn with the same options from the same
        archive by the same version; delete them otherwise.
        """
        self.name = name
        self.renderer = renderer
        self.place = Path("pictures") / folder_name(name)
        self._root = root
        self._kind = kind
        self._figures = figures if renderer.for_papers else ()
        self._layers = layer_folders(archive.manifest.layers)
        self._note = root / _NOTES / f"{folder_name(name)}.json"
        drawn_with = {
            "featuremaps": __version__,
            "layers": self._layers,
            "archive": archive.manifest.fingerprint,
            "others": renderer.dependencies(),
            "renderer": kind_of(type(renderer)),
            "options": json.loads(json.dumps(asdict(renderer), default=str)),
        }
        folder, kept = root / self.place, _read(self._note)
        folder.mkdir(parents=True, exist_ok=True)
        self._kept: dict[str, Any] = {"drawn_with": drawn_with}
        if isinstance(kept, dict) and kept.get("drawn_with") == drawn_with:
            self._kept = kept
            return
        for path in folder.rglob("*"):
            if _OURS.fullmatch(path.name) and path.is_file():
                path.unlink()
        self._note.parent.mkdir(exist_ok=True)
        write_json(self._note, self._kept)

    def of(self, sample: StoredSample) -> list[DrawnPicture]:
        """Return the pictures that a sample has when it is drawn."""
        layers: Sequence[str | None] = list(self._layers) if self.renderer.per_layer else [None]
        stem = sample_stem(sample.index, sample.id)
        return [
            self._files(layer, self.place / ("" if layer is None else self._layers[layer]) / stem)
            for layer in (layers if self.renderer.of_samples else [])
        ]

    def there(self, sample: StoredSample) -> list[DrawnPicture] | None:
        """Return a sample's pictures if all of them exist, else None."""
        return self._if_there(self.of(sample))

    def write(self, pictures: Iterator[Picture], sample: StoredSample) -> list[DrawnPicture]:
        """Write a sample's pictures."""
        places = {place.layer: place for place in self.of(sample)}
        return [self._save(picture, places[picture.layer]) for picture in pictures]

    def write_of_archive(self, pictures: Iterator[Picture]) -> list[DrawnPicture]:
        """Write the pictures of the archive as a whole; draws none of them if all are there."""
        kept = self._kept.get("of_archive")
        if kept is not None:
            found = [self._of_archive(layer, title) for layer, title in kept]
            if self._if_there(found) is not None:
                return found
        drawn = [self._save(p, self._of_archive(p.layer, p.title)) for p in pictures]
        self._kept["of_archive"] = [[picture.layer, picture.title] for picture in drawn]
        write_json(self._note, self._kept)
        return drawn

    def _of_archive(self, layer: str | None, title: str) -> DrawnPicture:
        whose = "all" if layer is None else self._layers.get(layer) or folder_name(layer)
        return self._files(layer, self.place / f"archive-{whose}", title)

    def _files(self, layer: str | None, stem: Path, title: str = "") -> DrawnPicture:
        return DrawnPicture(
            renderer=self.name,
            layer=layer,
            path=stem.with_name(f"{stem.name}.{self._kind.value}"),
            title=title,
            figures=tuple(stem.with_name(f"{stem.name}.{kind.value}") for kind in self._figures),
        )

    def _if_there(self, found: list[DrawnPicture]) -> list[DrawnPicture] | None:
        paths = [path for picture in found for path in (picture.path, *picture.figures)]
        return found if all((self._root / path).is_file() for path in paths) else None

    def _save(self, picture: Picture, place: DrawnPicture) -> DrawnPicture:
        (self._root / place.path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._root / place.path, encode(picture.drawing, self._kind), durable=False)
        for kind, path in zip(self._figures, place.figures, strict=True):
            content = encode_figure(picture.drawing, kind)
            write_bytes(self._root / path, content, durable=False)
        return place


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
