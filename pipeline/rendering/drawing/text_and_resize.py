"""Text and resizing: fonts, line breaking and scaling of maps to their drawn size.

Text uses DejaVu Sans, which ships with matplotlib (free licence), so pictures look the same
everywhere; text that it lacks uses an installed font that has all of its characters.
"""

import logging
import re
from functools import cache, lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from pipeline.common.arrays import Array

log = logging.getLogger(__name__)

PAPER = (255, 255, 255)
INK = (28, 28, 32)
SOFT_INK = (105, 105, 115)
TITLE_SIZE = 12
_BREAKS = re.compile(r".+?(?:(?<=\w)[_/-](?=\w)|(?<!\d)\.(?=\w)|\.(?=[^\W\d])| |$)")
CAPTION_SIZE = 16


def font(size: int, text: str = "", *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font of a text at a size in pixels."""
    return _opened(font_file(text, bold=bold), size)


_opened = cache(ImageFont.truetype)


@lru_cache(maxsize=8192)
def font_file(text: str = "", *, bold: bool = False) -> str:
    """Return the file of DejaVu Sans, or of an installed font that has what it lacks of a text."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    file = str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name)
    codes = frozenset(map(ord, text))
    return file if codes <= _characters(file) else _covering(codes) or file


@cache
def _characters(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())


@cache
def _covering(codes: frozenset[int]) -> str:
    from matplotlib.font_manager import fontManager  # slow import, rarely needed

    fonts = [font for font in fontManager.ttflist if "LastResort" not in font.fname]
    for entry in sorted(fonts, key=lambda f: (f.style != "normal", f.weight != 400, f.fname)):
        try:
            if codes <= _characters(entry.fname) and FT2Font(entry.fname).scalable:
                return entry.fname
        except (OSError, RuntimeError):  # listed, but removed or damaged
            continue
    _warn_of_boxes()
    return ""


@cache
def _warn_of_boxes() -> None:
    log.warning("text: characters that no installed font has are drawn as boxes")


@lru_cache(maxsize=1024)
def coverage(text: str, size: int, *, bold: bool = False) -> Array:
    """Return the coverage of every pixel by a line of text, uint8 `(height, width)`, read-only.

    Cached because titles recur in every sample's picture.
    """
    line = _one_line(text)
    face = font(size, line, bold=bold)
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
    line = _one_line(text)
    return font(size, line, bold=bold).getlength(line)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def short(text: str, longest: int = 28) -> str:
    """Return a name of at most `longest` characters, its middle elided if needed.

    >>> short("a.very.long.name", 9)
    'a.ve…name'
    """
    return text if len(text) <= longest else _elided(text, longest - 1)


def _elided(text: str, keep: int) -> str:
    return f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"


@lru_cache(maxsize=8192)
def wrap(
    text: str, width: int, size: int, *, bold: bool = False, max_lines: int = 3
) -> tuple[str, ...]:
    """Return `text` in lines of at most `width` pixels, broken after spaces, `.`, `_`, `-` and `/`
    but not within numbers. The middle is elided if it takes more than `max_lines`. An empty text
    has no line.
    """
    text = _one_line(text)
    face = font(size, f"{text}…", bold=bold)
    for keep in range(len(text), 0, -1):
        lines = [""]
        shown = text if keep == len(text) else _elided(text, keep)
        for part in shown.split(" · "):
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
        if len(wrapped) <= max_lines and all(face.getlength(line) <= width for line in wrapped):
            return wrapped
    return ("…",) if text else ()


def placeholder(text: str, cell: int) -> Array:
    """Return a light square with a reason in place of a missing picture."""
    image = Image.new("RGB", (cell, cell), (240, 240, 243))
    draw = ImageDraw.Draw(image)
    line = "".join(wrap(text, cell - 16, TITLE_SIZE, max_lines=1))
    draw.text((8, cell // 2 - 8), line, fill=SOFT_INK, font=font(TITLE_SIZE, line))
    return np.asarray(image)
