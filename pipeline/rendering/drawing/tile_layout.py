"""Tile layout: tiles with titles under a caption, drawn as pixels or as vector graphics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.common.arrays import Array
from pipeline.rendering.drawing.colormaps import INK_INDEX, LEVELS, PAPER_INDEX, SHADES
from pipeline.rendering.drawing.text_and_resize import (
    CAPTION_SIZE,
    INK,
    PAPER,
    SOFT_INK,
    TITLE_SIZE,
    coverage,
    font,
    font_file,
    width_of,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Titles = Literal["all", "headline", "maps", "none"]
MARGIN = 12
GAP = 8
_LINE = 1.35
_READABLE = 240  # minimum width in pixels at which a headline is wrapped
_DPI = 100
_POINTS_PER_INCH = 72


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A rectangle of a picture with a title and a softer second line.

    Attributes:
        pixels: uint8 `(height, width, rgb)`, or palette indices `(height, width)`.
        palette: a palette of `pipeline.rendering.drawing.colormaps`.
        title, note: texts above the pixels.
    """

    pixels: Array
    palette: Array | None = None
    title: str = ""
    note: str = ""

    @property
    def rgb(self) -> Array:
        """Its pixels, uint8 `(height, width, rgb)`."""
        return self.pixels if self.palette is None else self.palette[self.pixels]


def blank_tile(width: int, title: str = "", note: str = "") -> Tile:
    """Return a tile of texts alone; a row is as high as its largest tile."""
    return Tile(pixels=np.full((1, width, 3), PAPER, np.uint8), title=title, note=note)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A line of text with its upper left corner at `x`, `y`; all sizes are in pixels."""

    x: int
    y: int
    text: str
    size: int = TITLE_SIZE
    bold: bool = False
    color: tuple[int, int, int] = INK


@dataclass(frozen=True, kw_only=True)
class TileLayout:
    """A picture: painted pixels and the texts on them.

    Attributes:
        paper: uint8 `(height, width, rgb)`, or palette indices `(height, width)`.
        palette: a palette of `pipeline.rendering.drawing.colormaps`.
        texts: texts in ink or soft ink.
        boxes: left, top, right and bottom of every tile including its texts.
    """

    paper: Array
    palette: Array | None = None
    texts: tuple[Text, ...] = ()
    boxes: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def rgb(self) -> Array:
        """The picture with its texts, uint8 `(height, width, rgb)`."""
        pixels, palette = self.painted()
        return pixels if palette is None else palette[pixels]

    def painted(self) -> tuple[Array, Array | None]:
        """Return the picture with its texts, in the form of `paper`, and its palette."""
        pixels = self.paper.copy() if self.texts else self.paper
        for text in self.texts:
            cover = coverage(text.text, text.size, bold=text.bold)
            area = pixels[text.y :, text.x :][: cover.shape[0], : cover.shape[1]]
            cover = cover[: area.shape[0], : area.shape[1]]
            if self.palette is None:
                alpha = cover[..., None] / np.float32(255)
                area[:] = np.rint(area + (np.array(text.color, np.float32) - area) * alpha)
            else:
                shade = (cover.astype(np.uint16) * SHADES + 127) // 255
                inked = shade > 0
                area[inked] = INK_INDEX[text.color] - 1 + shade[inked]
        return pixels, self.palette

    def figure(self) -> Figure:
        """Return the picture as a matplotlib figure, pixel for pixel, with texts as text."""
        from matplotlib.figure import Figure  # slow import, needed only for papers
        from matplotlib.font_manager import FontProperties

        paper = replace(self, texts=()).rgb
        height, width = paper.shape[:2]
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(paper, interpolation="none", extent=(0, width, height, 0), aspect="auto")
        axes.set_axis_off()
        for text in self.texts:
            ascent, _ = font(text.size, text.text, bold=text.bold).getmetrics()
            file = font_file(text.text, bold=text.bold)
            face = FontProperties(fname=file, size=text.size * _POINTS_PER_INCH / _DPI)
            axes.text(
                text.x, text.y + ascent, text.text, fontproperties=face, parse_math=False,
                color=[level / 255 for level in text.color], va="baseline",
            )  # fmt: skip
        return figure


def compose(
    tiles: Sequence[Tile],
    columns: int,
    *,
    caption: str = "",
    note: str = "",
    titles: Titles = "all",
) -> TileLayout:
    """Return tiles in rows of `columns` under a caption and a note; `titles` selects the texts.

    Every column is as wide, and every row as high, as its largest tile; tiles are aligned at the
    top left of their cell. Long texts above tiles are wrapped; a prefix common to all titles is
    then omitted if the caption contains it.
    """
    if titles in ("maps", "none"):
        caption = note = ""
    if titles in ("headline", "none"):
        tiles = [replace(tile, title="", note="") for tile in tiles]
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    widths = [
        max(tile.pixels.shape[1] for tile in tiles[column::columns]) for column in range(columns)
    ]
    rooms = [widths[number % columns] for number in range(len(tiles))]
    titles_in_lines = _wrapped([tile.title for tile in tiles], rooms, TITLE_SIZE, caption)
    notes_in_lines = _wrapped([tile.note for tile in tiles], rooms, TITLE_SIZE - 1)
    row_slices = [slice(row * columns, (row + 1) * columns) for row in range(rows)]
    title_heights = [
        max(map(len, titles_in_lines[cells])) * _height(TITLE_SIZE) for cells in row_slices
    ]
    note_heights = [
        max(map(len, notes_in_lines[cells])) * _height(TITLE_SIZE - 1) for cells in row_slices
    ]
    heights = [max(tile.pixels.shape[0] for tile in tiles[cells]) for cells in row_slices]
    width = 2 * MARGIN + sum(widths) + GAP * (columns - 1)
    texts, top = _head(caption, note, width - 2 * MARGIN)
    height = top + sum([*heights, *title_heights, *note_heights]) + GAP * (rows - 1) + MARGIN
    palette, *other_palettes = (tile.palette for tile in tiles)
    # Compared by content: concurrent threads may each have created the palette.
    if palette is not None and all(
        other is not None and np.array_equal(other, palette) for other in other_palettes
    ):
        paper = np.full((height, width), PAPER_INDEX, dtype=np.uint8)
    else:
        palette = None
        paper = np.full((height, width, 3), PAPER, dtype=np.uint8)
    y = top
    boxes = []
    for row, cells in enumerate(row_slices):
        x, pixels_at = MARGIN, y + title_heights[row] + note_heights[row]
        for number in range(len(tiles))[cells]:
            tile, size = tiles[number], TITLE_SIZE - 1
            for i, line in enumerate(titles_in_lines[number]):
                texts.append(Text(x=x, y=y + i * _height(TITLE_SIZE), text=line))
            for i, line in enumerate(notes_in_lines[number]):
                below = y + title_heights[row] + i * _height(size)
                texts.append(Text(x=x, y=below, text=line, size=size, color=SOFT_INK))
            pixels = tile.rgb if palette is None else tile.pixels
            right, bottom = x + pixels.shape[1], pixels_at + pixels.shape[0]
            paper[pixels_at:bottom, x:right] = pixels
            boxes.append((x, y, right, bottom))
            x += rooms[number] + GAP
        y = pixels_at + heights[row] + GAP
    return TileLayout(paper=paper, palette=palette, texts=tuple(texts), boxes=tuple(boxes))


def even_columns(count: int, max_columns: int) -> int:
    """Return the number of columns, at most `max_columns`, that leaves the fewest cells empty.

    >>> even_columns(9, 4), even_columns(5, 4), even_columns(7, 4), even_columns(3, 7)
    (3, 3, 4, 3)
    """
    if count <= max_columns:
        return max(1, count)
    return min(range(max_columns, max_columns // 2, -1), key=lambda columns: -count % columns)


def _wrapped(
    texts: Sequence[str], rooms: Sequence[int], size: int, caption: str = ""
) -> list[tuple[str, ...]]:
    """Return each text in lines that fit its room."""
    wrapped = [wrap(text, room, size) for text, room in zip(texts, rooms, strict=True)]
    first = {text.partition(" · ")[0] for text in texts if text}
    if len(first) == 1 and max(map(len, wrapped)) > 1:
        start = f"{first.pop()} · "
        if caption.startswith(start) and all(text.startswith(start) for text in texts if text):
            return _wrapped([text.removeprefix(start) for text in texts], rooms, size)
    return wrapped


def with_bar(layout: TileLayout, low: str, high: str) -> TileLayout:
    """Return a picture with a palette, with its colour bar below; widened if it is narrower."""
    height, width = layout.paper.shape
    length = min(256, max(32, width - 2 * MARGIN - 160))
    line = _height(TITLE_SIZE)
    left = MARGIN + round(width_of(low, TITLE_SIZE)) + GAP
    right = left + length + GAP
    more = max(0, right + round(width_of(high, TITLE_SIZE)) + MARGIN - width)
    paper = np.pad(layout.paper, ((0, line + MARGIN), (0, more)), constant_values=PAPER_INDEX)
    paper[height + 2 : height + line - 4, left : left + length] = (
        np.arange(length) * LEVELS // length
    )
    ends = (
        Text(x=MARGIN, y=height, text=low, color=SOFT_INK),
        Text(x=right, y=height, text=high, color=SOFT_INK),
    )
    return replace(layout, paper=paper, texts=(*layout.texts, *ends))


def _head(caption: str, note: str, room: int) -> tuple[list[Text], int]:
    texts: list[Text] = []
    y = MARGIN
    max_lines = 3 if room >= _READABLE else 1
    for line in wrap(caption, room, CAPTION_SIZE, bold=True, max_lines=max_lines):
        texts.append(Text(x=MARGIN, y=y, text=line, size=CAPTION_SIZE, bold=True))
        y += _height(CAPTION_SIZE)
    for line in wrap(note, room, TITLE_SIZE, max_lines=max_lines):
        texts.append(Text(x=MARGIN, y=y, text=line, color=SOFT_INK))
        y += _height(TITLE_SIZE)
    return texts, y + GAP // 2 if texts else y


def _height(size: int) -> int:
    return round(size * _LINE) + 2
