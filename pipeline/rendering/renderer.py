"""Base class of renderers: a configuration that turns a stored sample into pictures."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.configured import configured
from pipeline.rendering.drawing.picture_formats import Drawing, encode
from pipeline.rendering.drawing.tile_layout import Tile, TileLayout, Titles, compose
from pipeline.rendering.views import SampleView, caption


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture, of one layer or of all.

    Attributes:
        layer: name of the layer; None for all layers.
        drawing: pixels and texts.
        title: title of a picture that does not show a sample.
    """

    layer: str | None
    drawing: Drawing
    title: str = ""

    @property
    def rgb(self) -> Array:
        """Pixels, uint8 `(height, width, rgb)`."""
        return self.drawing.rgb

    def _repr_png_(self) -> bytes:
        return encode(self.drawing, "png")


def _worded(value: object) -> object:
    """Convert a boolean `titles` to `all` or `headline`."""
    return {True: "all", False: "headline"}[value] if isinstance(value, bool) else value


@configured
class Renderer(ABC):  # noqa: B024 - a renderer overrides either draw method
    """One kind of picture, of every sample or of the whole archive.

    Attributes:
        type_key: name in files; empty uses the class name in snake case.
        titles: texts of the pictures: `all`, the `headline`, those of the `maps`, or `none`.
    """

    type_key: ClassVar[str] = ""

    titles: Annotated[Titles, BeforeValidator(_worded)] = "all"

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        """Return the pictures of a sample; empty for a renderer of the whole archive."""
        return iter(())

    def pictured(self, layers: Sequence[LayerEntry]) -> list[str | None]:
        """Return the layer of each picture of a sample; None for a picture of all layers."""
        return [None] if type(self).draw is not Renderer.draw else []

    def draw_archive(self, archive: Archive) -> Iterator[Picture]:
        """Return the pictures of the whole archive (its model, its dataset), drawn once.

        Raises:
            ConfigError: if an option does not fit the archive; the message names the option.
        """
        return iter(())

    def prepare(self, archive: Archive, folder: Path, stack: ExitStack) -> Renderer:
        """Return this renderer, or one fitted to the whole dataset.

        Called once, before anything is drawn; fits are stored in `folder`, that of the pictures.
        What is entered into `stack`, such as other archives, is closed after drawing.
        """
        return self

    def dependencies(self) -> dict[str, str]:
        """Return path → fingerprint of the other archives that the pictures depend on."""
        return {}

    def composed(
        self, sample: SampleView, tiles: Sequence[Tile], columns: int, title: str, note: str
    ) -> TileLayout:
        """Return the tiles of a sample under a caption and a note."""
        text = caption(sample, title)
        return compose(tiles, columns, caption=text, note=note, titles=self.titles)

    def unused(self, where: str, *names: str) -> None:
        """Raise ValueError if one of these options, which have no effect there, was set."""
        for option in fields(self):
            if option.name in names and getattr(self, option.name) != option.default:
                raise ValueError(f"{option.name}: has no effect {where}; leave it out")

    def check(self, channels: dict[str, int]) -> None:  # noqa: B027 - most renderers fit every layer
        """Raise ConfigError before drawing if an option, which the message names, does not fit the
        layers (layer → number of channels).
        """
