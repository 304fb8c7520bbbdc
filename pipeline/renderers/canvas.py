"""Composing a picture: tiles with titles under a caption, as one RGB array.

Text is set in DejaVu Sans, which matplotlib brings along (free licence), so pictures look the same
everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Array = np.ndarray[Any, np.dtype[Any]]

PAPER = (255, 255, 255)
INK = (28, 28, 32)
SOFT_INK = (105, 105, 115)
MARGIN = 12
GAP = 8
TITLE_SIZE = 12
CAPTION_SIZE = 16
_LINE = 1.35


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One part of a picture.

    Uint8 `(height, width, rgb)`, with a title and a softer second line.
    """

    rgb: Array
    title: str = ""
    note: str = ""


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans at a size in pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)


def enlarge(picture: Array, cell: int) -> Array:
    """Return a map or RGB picture repeated so that its longer side comes as near to `cell` as whole
    pixels allow.

    Pixels stay square and sharp. A picture larger than `cell` is returned as it is.
    """
    factor = max(1, cell // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else picture


def smooth(picture: Array, cell: int) -> Array:
    """Return a map or RGB picture enlarged bilinearly to the size that `enlarge` gives.

    Non-finite values of a map make their neighbourhood non-finite.
    """
    factor = max(1, cell // max(picture.shape[:2]))
    if factor == 1:
        return picture
    size = (picture.shape[1] * factor, picture.shape[0] * factor)
    image = Image.fromarray(picture if picture.ndim == 3 else picture.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def with_bar(picture: Array, colors: Array, low: str, high: str) -> Array:
    """Return a picture with a colour bar below it, its ends labelled.

    Args:
        picture: uint8 `(height, width, rgb)`.
        colors: `(color, rgb)`, from low to high.
        low, high: texts of the ends.
    """
    width = picture.shape[1]
    length = min(256, max(32, width - 2 * MARGIN - 160))
    line = _height(TITLE_SIZE)
    strip = np.full((line + MARGIN, width, 3), PAPER, dtype=np.uint8)
    face = font(TITLE_SIZE)
    left = MARGIN + round(face.getlength(low)) + GAP
    bar = colors[np.arange(length) * len(colors) // length][: max(0, width - left)]
    strip[2 : line - 4, left : left + len(bar)] = bar
    texts = [
        (MARGIN, 0, low, TITLE_SIZE, False, SOFT_INK),
        (left + length + GAP, 0, high, TITLE_SIZE, False, SOFT_INK),
    ]
    return np.concatenate([picture, _with_texts(strip, texts)])


def fit(picture: Array, cell: int) -> Array:
    """Return an RGB picture with its longer side exactly `cell`.

    Nearest pixels to enlarge, averages to shrink.
    """
    height, width = picture.shape[:2]
    scale = cell / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return picture
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize(size, how))


def size_of(picture: Array) -> str:
    """Return width × height of an array `(height, width, …)`."""
    return f"{picture.shape[1]}×{picture.shape[0]}"


def shorten(text: str, width: int, size: int, *, bold: bool = False) -> str:
    """Return `text`, its middle left out if it would be wider than `width` pixels."""
    face = font(size, bold=bold)
    if face.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 0, -1):
        short = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
        if face.getlength(short) <= width:
            return short
    return "…"


def compose(tiles: Sequence[Tile], columns: int, *, caption: str = "", note: str = "") -> Array:
    """Return tiles in rows of `columns` under a caption and a note.

    Every column is as wide, and every row as high, as its largest tile; tiles stand at the top left
    of their cell.
    """
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    title_height = _height(TITLE_SIZE) if any(tile.title for tile in tiles) else 0
    note_height = _height(TITLE_SIZE - 1) if any(tile.note for tile in tiles) else 0
    widths = [
        max(tile.rgb.shape[1] for tile in tiles[column::columns]) for column in range(columns)
    ]
    heights = [
        max(tile.rgb.shape[0] for tile in tiles[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    width = 2 * MARGIN + sum(widths) + GAP * (columns - 1)
    head = (_height(CAPTION_SIZE) if caption else 0) + (_height(TITLE_SIZE) if note else 0)
    top = MARGIN + (head + GAP // 2 if head else 0)
    height = top + sum(heights) + rows * (title_height + note_height) + GAP * (rows - 1) + MARGIN
    canvas = np.full((height, width, 3), PAPER, dtype=np.uint8)
    texts: list[tuple[int, int, str, int, bool, tuple[int, int, int]]] = []
    room = width - 2 * MARGIN
    if caption:
        texts.append(
            (
                MARGIN,
                MARGIN,
                shorten(caption, room, CAPTION_SIZE, bold=True),
                CAPTION_SIZE,
                True,
                INK,
            )
        )
    if note:
        below = MARGIN + (_height(CAPTION_SIZE) if caption else 0)
        texts.append((MARGIN, below, shorten(note, room, TITLE_SIZE), TITLE_SIZE, False, SOFT_INK))
    y = top
    for row in range(rows):
        x = MARGIN
        for column, tile in enumerate(tiles[row * columns : (row + 1) * columns]):
            place = widths[column]
            if tile.title:
                texts.append((x, y, shorten(tile.title, place, TITLE_SIZE), TITLE_SIZE, False, INK))
            if tile.note:
                short = shorten(tile.note, place, TITLE_SIZE - 1)
                texts.append((x, y + title_height, short, TITLE_SIZE - 1, False, SOFT_INK))
            at = y + title_height + note_height
            canvas[at : at + tile.rgb.shape[0], x : x + tile.rgb.shape[1]] = tile.rgb
            x += place + GAP
        y += heights[row] + title_height + note_height + GAP
    return _with_texts(canvas, texts)


def _height(size: int) -> int:
    return round(size * _LINE) + 2


def _with_texts(
    canvas: Array, texts: Sequence[tuple[int, int, str, int, bool, tuple[int, int, int]]]
) -> Array:
    if not texts:
        return canvas
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for x, y, text, size, bold, color in texts:
        draw.text((x, y), text, fill=color, font=font(size, bold=bold))
    return np.asarray(image)


def placeholder(text: str, cell: int) -> Array:
    """Return a light square that says why there is nothing to show."""
    image = Image.new("RGB", (cell, cell), (240, 240, 243))
    draw = ImageDraw.Draw(image)
    draw.text(
        (8, cell // 2 - 8),
        shorten(text, cell - 16, TITLE_SIZE),
        fill=SOFT_INK,
        font=font(TITLE_SIZE),
    )
    return np.asarray(image)
