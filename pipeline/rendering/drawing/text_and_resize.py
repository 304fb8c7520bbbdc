"""Text and tiles: fonts, and maps brought to the size they are drawn at.

Text is set in DejaVu Sans, which matplotlib brings along (free licence), so pictures look the same
everywhere.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.common.arrays import Array

PAPER = (255, 255, 255)
INK = (28, 28, 32)
SOFT_INK = (105, 105, 115)
TITLE_SIZE = 12
_MOST_LINES = 3
_BREAKS = re.compile(r".+?(?:(?<=\w)[_/-](?=\w)|(?<!\d)\.(?=\w)|\.(?=[^\W\d])| |$)")
CAPTION_SIZE = 16


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans at a size in pixels."""
    return ImageFont.truetype(str(font_file(bold=bold)), size)


def font_file(*, bold: bool = False) -> Path:
    """Return the file of DejaVu Sans."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / name


@lru_cache(maxsize=1024)
def coverage(text: str, size: int, *, bold: bool = False) -> Array:
    """Return how much of every pixel a line of text covers, uint8 `(height, width)`, read-only.

    Titles recur in every sample's picture, so they are drawn once.
    """
    face, line = font(size, bold=bold), _one_line(text)
    _, _, right, bottom = face.getbbox(line)
    image = Image.new("L", (max(1, round(right) + 1), max(1, round(bottom) + 1)))
    ImageDraw.Draw(image).text((0, 0), line, fill=255, font=face)
    return np.asarray(image)


def scaled_size(picture: Array, cell: int) -> tuple[int, int]:
    """Return height and width of a map or picture whose longer side is brought to `cell`."""
    height, width = picture.shape[:2]
    scale = cell / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def enlarge(picture: Array, cell: int) -> Array:
    """Return a map or picture with its longer side exactly `cell`, its pixels repeated.

    They stay sharp; where `cell` is no multiple of the side, some are repeated once more.
    """
    height, width = picture.shape[:2]
    tall, wide = scaled_size(picture, cell)
    rows, columns = np.arange(tall) * height // tall, np.arange(wide) * width // wide
    enlarged: Array = picture[rows][:, columns]
    return enlarged


def resample(values: Array, cell: int, how: Image.Resampling) -> Array:
    """Return a map `(height, width)` with its longer side exactly `cell`, float32.

    Non-finite values make their neighbourhood non-finite.
    """
    tall, wide = scaled_size(values, cell)
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((wide, tall), how))


def fit(picture: Array, cell: int) -> Array:
    """Return an RGB picture with its longer side exactly `cell`.

    Nearest pixels to enlarge, averages to shrink.
    """
    if cell >= max(picture.shape[:2]):
        return enlarge(picture, cell)
    tall, wide = scaled_size(picture, cell)
    return np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BOX))


def size_of(picture: Array) -> str:
    """Return width × height of an array `(height, width, …)`."""
    return f"{picture.shape[1]}×{picture.shape[0]}"


def width_of(text: str, size: int, *, bold: bool = False) -> float:
    """Return how many pixels a line of text takes."""
    return font(size, bold=bold).getlength(_one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


@lru_cache(maxsize=8192)
def shorten(text: str, width: int, size: int, *, bold: bool = False) -> str:
    """Return `text` as one line, its middle left out if it would be wider than `width` pixels."""
    face, text = font(size, bold=bold), _one_line(text)
    if face.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 0, -1):
        short = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
        if face.getlength(short) <= width:
            return short
    return "…"


@lru_cache(maxsize=8192)
def wrap(text: str, width: int, size: int, *, bold: bool = False) -> tuple[str, ...]:
    """Return `text` in lines of at most `width` pixels, broken after spaces, `.`, `_`, `-` and `/`
    but not within numbers; its middle is left out only if it takes more than `_MOST_LINES`.
    """
    face, text = font(size, bold=bold), _one_line(text)
    for keep in range(len(text), 0, -1):
        whole = keep == len(text)
        short = text if whole else f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
        lines = [""]
        for part in short.split(" · "):
            if (line := f"{lines[-1]} · {part}" if lines[-1] else part) and face.getlength(
                line
            ) <= width:
                lines[-1] = line
                continue
            lines += [""] * bool(lines[-1])
            for piece in _BREAKS.findall(part):
                if lines[-1] and face.getlength(f"{lines[-1]}{piece}".rstrip()) > width:
                    lines.append("")
                lines[-1] += piece
        found = tuple(line.strip() for line in lines)
        if len(found) <= _MOST_LINES and all(face.getlength(line) <= width for line in found):
            return found
    return ("…",)


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
