"""Picture files: one folder per renderer, atomic writes, redrawn only if the inputs changed.

pictures/<renderer>/<sample>.png            pictures of a whole sample
pictures/<renderer>/<alias>/<sample>.png    pictures of one layer of a sample
.drawn/<renderer>.json                      their options and source, and the archive's pictures

A figure for papers has its picture's name with another extension.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.common.atomic_files import read_json, write_bytes, write_json
from pipeline.common.configured import type_key_of
from pipeline.rendering.drawing.picture_formats import encode
from pipeline.rendering.file_names import folder_name, layer_folders, sample_stem
from pipeline.rendering.options import THUMBNAILS, RenderOptions
from pipeline.rendering.renderer import Picture, Renderer

_NOTES = ".drawn"
_OURS = re.compile(r"(\d{6,}-.+|archive-.*)\.(png|webp|jpeg|pdf|svg)|fit-.*\.npz")


@dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture file."""

    renderer: str  # its name in the configuration
    layer: str | None  # None for a picture of the whole sample
    path: Path  # relative to the output folder, like `figures`
    title: str = ""  # of a picture that does not show a sample
    figures: tuple[Path, ...] = ()


class PictureFolder:
    """Pictures of one archive by one renderer."""

    def __init__(
        self, root: Path, name: str, renderer: Renderer, archive: Archive, options: RenderOptions,
        stack: ExitStack,
    ) -> None:  # fmt: skip
        """Keep existing pictures drawn by the same version from the same archive with the same
        options; delete all others. Prepare the renderer.
        """
        self.name = name
        self.folder = Path("pictures") / folder_name(name)
        self._root = root
        self._kind = options.format
        self._figures = () if name == THUMBNAILS else options.figures
        self._layers = layer_folders(archive.manifest.layers)
        self._note = root / _NOTES / f"{folder_name(name)}.json"
        drawn_with = {
            "featuremaps": __version__,
            "layers": self._layers,
            "archive": asdict(archive.complete),
            "others": renderer.dependencies(),
            "renderer": type_key_of(type(renderer)),
            "options": json.loads(json.dumps(asdict(renderer), default=str)),
        }
        folder, previous = root / self.folder, read_json(self._note)
        folder.mkdir(parents=True, exist_ok=True)
        self._record: dict[str, Any] = {"drawn_with": drawn_with}
        if previous.get("drawn_with") == drawn_with:
            self._record = previous
        else:
            for path in folder.rglob("*"):
                if _OURS.fullmatch(path.name) and path.is_file():
                    path.unlink()
            self._note.parent.mkdir(exist_ok=True)
            write_json(self._note, self._record)
        self.renderer = renderer.prepare(archive, folder, stack)
        self._pictured = self.renderer.pictured(archive.manifest.layers)

    def of(self, sample: StoredSample) -> list[DrawnPicture]:
        """Return the pictures of a sample, whether or not they are drawn yet."""
        stem = sample_stem(sample.index, sample.id)
        return [
            self._files(layer, self.folder / ("" if layer is None else self._layers[layer]) / stem)
            for layer in self._pictured
        ]

    def has(self, pictures: Iterable[DrawnPicture]) -> bool:
        """Return whether all files of the pictures exist."""
        paths = [path for picture in pictures for path in (picture.path, *picture.figures)]
        return all((self._root / path).is_file() for path in paths)

    def write(self, pictures: Iterator[Picture], sample: StoredSample) -> list[DrawnPicture]:
        """Write a sample's pictures."""
        files = {drawn_picture.layer: drawn_picture for drawn_picture in self.of(sample)}
        return [self._save(picture, files[picture.layer]) for picture in pictures]

    def write_of_archive(self, pictures: Iterator[Picture]) -> list[DrawnPicture]:
        """Write the pictures of the whole archive, unless all of them exist."""
        recorded = self._record.get("of_archive")
        if recorded is not None:
            files = [self._of_archive(layer, title) for layer, title in recorded]
            if self.has(files):
                return files
        saved = [self._save(p, self._of_archive(p.layer, p.title)) for p in pictures]
        self._record["of_archive"] = [[picture.layer, picture.title] for picture in saved]
        write_json(self._note, self._record)
        return saved

    def _of_archive(self, layer: str | None, title: str) -> DrawnPicture:
        name = "all" if layer is None else self._layers.get(layer) or folder_name(layer)
        return self._files(layer, self.folder / f"archive-{name}", title)

    def _files(self, layer: str | None, stem: Path, title: str = "") -> DrawnPicture:
        return DrawnPicture(
            renderer=self.name,
            layer=layer,
            path=stem.with_name(f"{stem.name}.{self._kind}"),
            title=title,
            figures=tuple(stem.with_name(f"{stem.name}.{kind}") for kind in self._figures),
        )

    def _save(self, picture: Picture, drawn: DrawnPicture) -> DrawnPicture:
        (self._root / drawn.path).parent.mkdir(parents=True, exist_ok=True)
        for path in (drawn.path, *drawn.figures):
            content = encode(picture.drawing, path.suffix.removeprefix("."))
            write_bytes(self._root / path, content, durable=False)
        return drawn
