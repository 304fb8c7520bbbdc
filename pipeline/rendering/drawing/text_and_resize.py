"""Text and resizing: fonts, line breaking and scaling of maps to their drawn size.

Text uses DejaVu Sans, which ships with matplotlib (free licence), so pictures look the same
everywhere.
"""

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
    """Return the path of the DejaVu Sans font file."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / name


@lru_cache(maxsize=1024)
def coverage(text: str, size: int, *, bold: bool = False) -> Array:
    """Return the coverage of every pixel by a line of text, uint8 `(height, width)`, read-only.

    Cached because titles recur in every sample's picture.
    """
    face, line = font(size, bold=bold), _one_line(text)
    _, _, right, bottom = face.getbbox(line)
    image = Image.new("L", (max(1, round(right) + 1), max(1, round(bottom) + 1)))
    ImageDraw.Draw(image).text((0, 0), line, fill=255, font=face)
    return np.asarray(image)


def scaled_size(picture: Array, cell: int) -> tuple[int, int]:
    """Return the height and width of a map or picture scaled to a longer side of `cell`."""
    height, width = picture.shape[:2]
    scale = cell / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def enlarge(picture: Array, cell: int) -> Array:
    """Return a map or picture enlarged to a longer side of `cell` by repeating pixels.

    If `cell` is not a multiple of the side, some pixels are repeated once more.
    """
    height, width = picture.shape[:2]
    tall, wide = scaled_size(picture, cell)
    rows, columns = np.arange(tall) * height // tall, np.arange(wide) * width // wide
    enlarged: Array = picture[rows][:, columns]
    return enlarged


def resample(values: Array, cell: int, how: Image.Resampling) -> Array:
    """Return a map `(height, width)` resampled to a longer side of `cell`, float32.

    Non-finite values make their neighbourhood non-finite.
    """
    tall, wide = scaled_size(values, cell)
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((wide, tall), how))


def fit(picture: Array, cell: int) -> Array:
    """Return an RGB picture resized to a longer side of `cell`.

    Enlarges by nearest neighbour, shrinks by averaging.
    """
    if cell >= max(picture.shape[:2]):
        return enlarge(picture, cell)
    tall, wide = scaled_size(picture, cell)
    return np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BOX))


def size_of(picture: Array) -> str:
    """Return the text width×height of an array `(height, width, …)`."""
    return f"{picture.shape[1]}×{picture.shape[0]}"


def width_of(text: str, size: int, *, bold: bool = False) -> float:
    """Return the width of a line of text in pixels."""
    return font(size, bold=bold).getlength(_one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


@lru_cache(maxsize=8192)
def shorten(text: str, width: int, size: int, *, bold: bool = False) -> str:
    """Return `text` as one line of at most `width` pixels; the middle is elided if needed."""
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
    but not within numbers. The middle is elided if it takes more than `_MOST_LINES`.
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
        wrapped = tuple(line.strip() for line in lines)
        if len(wrapped) <= _MOST_LINES and all(face.getlength(line) <= width for line in wrapped):
            return wrapped
    return ("…",)


def placeholder(text: str, cell: int) -> Array:
    """Return a light square with a reason in place of a missing picture."""
    image = Image.new("RGB", (cell, cell), (240, 240, 243))
    draw = ImageDraw.Draw(image)
    draw.text(
        (8, cell // 2 - 8),
        shorten(text, cell - 16, TITLE_SIZE),
        fill=SOFT_INK,
        font=font(TITLE_SIZE),
    )
    return np.asarray(image)
