"""Sheets: tiles with titles under a caption, laid out once, then drawn as pixels or as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from pipeline.foundation.arrays import Array
from pipeline.rendering.canvas import (
    CAPTION_SIZE,
    INK,
    PAPER,
    SOFT_INK,
    TITLE_SIZE,
    coverage,
    font,
    font_file,
    shorten,
    width_of,
)
from pipeline.rendering.palette import INK_INDEX, LEVELS, PAPER_INDEX, SHADES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Titles(StrEnum):
    """Texts of a picture: `all`, the `headline` and its note, those of its `maps`, or `none`."""

    ALL = "all"
    HEADLINE = "headline"
    MAPS = "maps"
    NONE = "none"


MARGIN = 12
GAP = 8
_LINE = 1.35
_DPI = 100
_POINTS_PER_INCH = 72


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One part of a picture, with a title and a softer second line.

    Attributes:
        pixels: uint8 `(height, width, rgb)`, or `(height, width)` numbers of the palette's colours.
        palette: one of `pipeline.rendering.palette`'s.
        title, note: above the pixels.
    """

    pixels: Array
    palette: Array | None = None
    title: str = ""
    note: str = ""

    @property
    def rgb(self) -> Array:
        """Its pixels, uint8 `(height, width, rgb)`."""
        return self.pixels if self.palette is None else self.palette[self.pixels]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A line of text, its upper left corner at `x`, `y`, in pixels; `size` too."""

    x: int
    y: int
    text: str
    size: int = TITLE_SIZE
    bold: bool = False
    color: tuple[int, int, int] = INK


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A picture: what is painted, and the texts that stand on it.

    Attributes:
        paper: uint8 `(height, width, rgb)`, or `(height, width)` numbers of the palette's colours.
        palette: one of `pipeline.rendering.palette`'s.
        texts: in ink or soft ink.
    """

    paper: Array
    palette: Array | None = None
    texts: tuple[Text, ...] = ()

    @property
    def rgb(self) -> Array:
        """The picture with its texts, uint8 `(height, width, rgb)`."""
        pixels, palette = self.painted()
        return pixels if palette is None else palette[pixels]

    def painted(self) -> tuple[Array, Array | None]:
        """Return the picture with its texts, as `paper` is, and its palette."""
        pixels = self.paper.copy() if self.texts else self.paper
        for text in self.texts:
            cover = coverage(text.text, text.size, bold=text.bold)
            place = pixels[text.y :, text.x :][: cover.shape[0], : cover.shape[1]]
            cover = cover[: place.shape[0], : place.shape[1]]
            if self.palette is None:
                part = cover[..., None] / np.float32(255)
                place[:] = np.rint(place + (np.array(text.color, np.float32) - place) * part)
            else:
                shade = (cover.astype(np.uint16) * SHADES + 127) // 255
                inked = shade > 0
                place[inked] = INK_INDEX[text.color] - 1 + shade[inked]
        return pixels, self.palette

    def figure(self) -> Figure:
        """Return the picture as a figure of matplotlib's, pixel for pixel, its texts as text."""
        from matplotlib.figure import Figure  # slow to import, and only figures for papers need it
        from matplotlib.font_manager import FontProperties

        paper = replace(self, texts=()).rgb
        height, width = paper.shape[:2]
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(paper, interpolation="none", extent=(0, width, height, 0), aspect="auto")
        axes.set_axis_off()
        for text in self.texts:
            ascent, _ = font(text.size, bold=text.bold).getmetrics()
            face = FontProperties(
                fname=str(font_file(bold=text.bold)), size=text.size * _POINTS_PER_INCH / _DPI
            )
            axes.text(
                text.x, text.y + ascent, text.text, fontproperties=face, parse_math=False,
                color=[part / 255 for part in text.color], va="baseline",
            )  # fmt: skip
        return figure


def compose(
    tiles: Sequence[Tile],
    columns: int,
    *,
    caption: str = "",
    note: str = "",
    titles: Titles = Titles.ALL,
) -> Sheet:
    """Return tiles in rows of `columns` under a caption and a note, as far as `titles` wants them.

    Every column is as wide, and every row as high, as its largest tile; tiles stand at the top left
    of their cell. Texts are shortened to the room they have.
    """
    if titles in (Titles.MAPS, Titles.NONE):
        caption = note = ""
    if titles in (Titles.HEADLINE, Titles.NONE):
        tiles = [replace(tile, title="", note="") for tile in tiles]
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    title_height = _height(TITLE_SIZE) if any(tile.title for tile in tiles) else 0
    note_height = _height(TITLE_SIZE - 1) if any(tile.note for tile in tiles) else 0
    widths = [
        max(tile.pixels.shape[1] for tile in tiles[column::columns]) for column in range(columns)
    ]
    heights = [
        max(tile.pixels.shape[0] for tile in tiles[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    width = 2 * MARGIN + sum(widths) + GAP * (columns - 1)
    texts, top = _head(caption, note, width - 2 * MARGIN)
    height = top + sum(heights) + rows * (title_height + note_height) + GAP * (rows - 1) + MARGIN
    palette, *others = (tile.palette for tile in tiles)
    # Compared by content: threads that ask for a palette at once may each have made it.
    if palette is not None and all(
        other is not None and np.array_equal(other, palette) for other in others
    ):
        paper = np.full((height, width), PAPER_INDEX, dtype=np.uint8)
    else:
        palette = None
        paper = np.full((height, width, 3), PAPER, dtype=np.uint8)
    y = top
    for row in range(rows):
        x = MARGIN
        for column, tile in enumerate(tiles[row * columns : (row + 1) * columns]):
            room = widths[column]
            if tile.title:
                texts.append(Text(x=x, y=y, text=shorten(tile.title, room, TITLE_SIZE)))
            if tile.note:
                size = TITLE_SIZE - 1
                short = shorten(tile.note, room, size)
                texts.append(Text(x=x, y=y + title_height, text=short, size=size, color=SOFT_INK))
            at = y + title_height + note_height
            pixels = tile.rgb if palette is None else tile.pixels
            paper[at : at + pixels.shape[0], x : x + pixels.shape[1]] = pixels
            x += room + GAP
        y += heights[row] + title_height + note_height + GAP
    return Sheet(paper=paper, palette=palette, texts=tuple(texts))


def with_bar(sheet: Sheet, low: str, high: str) -> Sheet:
    """Return a picture of maps alone with its colours as a bar below it, from low to high.

    Args:
        sheet: a picture with a palette.
        low, high: texts of the ends.
    """
    height, width = sheet.paper.shape
    length = min(256, max(32, width - 2 * MARGIN - 160))
    line = _height(TITLE_SIZE)
    strip = np.full((line + MARGIN, width), PAPER_INDEX, dtype=np.uint8)
    left = MARGIN + round(width_of(low, TITLE_SIZE)) + GAP
    bar = (np.arange(length) * LEVELS // length)[: max(0, width - left)]
    strip[2 : line - 4, left : left + len(bar)] = bar
    ends = (
        Text(x=MARGIN, y=height, text=low, color=SOFT_INK),
        Text(x=left + length + GAP, y=height, text=high, color=SOFT_INK),
    )
    return replace(sheet, paper=np.concatenate([sheet.paper, strip]), texts=(*sheet.texts, *ends))


def _head(caption: str, note: str, room: int) -> tuple[list[Text], int]:
    """Return the texts above the tiles, and where the tiles begin."""
    texts: list[Text] = []
    y = MARGIN
    if caption:
        short = shorten(caption, room, CAPTION_SIZE, bold=True)
        texts.append(Text(x=MARGIN, y=y, text=short, size=CAPTION_SIZE, bold=True))
        y += _height(CAPTION_SIZE)
    if note:
        texts.append(Text(x=MARGIN, y=y, text=shorten(note, room, TITLE_SIZE), color=SOFT_INK))
        y += _height(TITLE_SIZE)
    return texts, y + GAP // 2 if texts else y


def _height(size: int) -> int:
    return round(size * _LINE) + 2
