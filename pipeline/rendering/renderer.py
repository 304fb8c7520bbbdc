"""What every renderer is: a configuration that turns one stored sample into pictures."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.configured import configured
from pipeline.rendering.drawing.picture_formats import encode
from pipeline.rendering.drawing.tile_layout import TileLayout, Titles
from pipeline.rendering.options import PictureFormat
from pipeline.rendering.views import SampleView


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture, of one layer or of all.

    Attributes:
        layer: what it shows, None for all layers.
        drawing: its pixels and texts.
        title: what it is, where it is not of a sample.
    """

    layer: str | None
    drawing: TileLayout
    title: str = ""

    @property
    def rgb(self) -> Array:
        """Its pixels, uint8 `(height, width, rgb)`."""
        return self.drawing.rgb

    def _repr_png_(self) -> bytes:
        return encode(self.drawing, PictureFormat.PNG)


def _worded(value: object) -> object:
    """Return a truth value, which `titles` of grids once was, as its word."""
    words = {True: Titles.ALL, False: Titles.HEADLINE}
    return words[value] if isinstance(value, bool) else value


@configured
class Renderer(ABC):  # noqa: B024 - a renderer overrides what it draws, of two kinds
    """One kind of picture: of every sample, or of the whole archive.

    Attributes:
        kind: the name by which files know it; empty: its class's in snake case.
        of_samples: whether it draws samples.
        per_layer: whether it draws one picture per layer of a sample, or one of all layers.
        for_papers: whether its pictures are also kept as figures for papers, if asked for.
        titles: which texts its pictures have: `all`, the `headline`, those of the `maps`, `none`.
    """

    kind: ClassVar[str] = ""
    of_samples: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    for_papers: ClassVar[bool] = True

    titles: Annotated[Titles, BeforeValidator(_worded)] = Titles.ALL

    def draw(self, sample: SampleView) -> Iterator[Picture]:
        """Return the pictures of a sample; none where the renderer draws the model only."""
        return iter(())

    def draw_archive(self, archive: Archive) -> Iterator[Picture]:
        """Return the pictures of the whole archive (its model, its dataset), drawn once.

        Raises:
            ConfigError: naming the option that does not fit the archive.
        """
        return iter(())

    def prepare(self, archive: Archive, folder: Path) -> Renderer:
        """Return this renderer, or one that also knows what it needs of the whole dataset.

        Called once, before anything is drawn.

        Args:
            archive: what will be drawn.
            folder: where this renderer's pictures go; what was fitted is kept there.
        """
        return self

    @property
    def opened(self) -> Sequence[Archive]:
        """Other archives that a fitted renderer reads; the caller closes them."""
        return ()

    def dependencies(self) -> dict[str, str]:
        """Return the other archives that are read: path → fingerprint; pictures depend on them."""
        return {}

    def check(self, channels: dict[str, int]) -> None:  # noqa: B027 - most renderers fit every layer
        """Refuse, before anything is drawn, options that do not fit the layers.

        Args:
            channels: layer → number of channels.

        Raises:
            ConfigError: naming the option.
        """
