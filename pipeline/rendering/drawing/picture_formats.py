"""Picture file formats: pixels for the screen, PDF and SVG for papers."""

from __future__ import annotations

import io
import logging
from threading import Lock
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.common.errors import ConfigError
from pipeline.rendering.drawing.png import write_png
from pipeline.rendering.drawing.tile_layout import TileLayout
from pipeline.rendering.options import FigureFormat, PictureFormat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_SIDE = {PictureFormat.WEBP: 16383, PictureFormat.JPEG: 65500}  # of the formats
_settings_lock = Lock()  # matplotlib's settings are global to the process


def encode(drawing: TileLayout, kind: PictureFormat) -> bytes:
    """Return a drawing as an encoded picture file."""
    if kind is PictureFormat.PNG:
        return write_png(*drawing.painted())
    settings: dict[PictureFormat, dict[str, Any]] = {
        PictureFormat.WEBP: {"lossless": True, "quality": 20, "method": 1},
        PictureFormat.JPEG: {"quality": 92},
    }
    buffer = io.BytesIO()
    height, width = drawing.rgb.shape[:2]
    if max(height, width) > _LONGEST_SIDE[kind]:
        raise ConfigError(
            f"render.format: a picture of {width}×{height} pixels exceeds the "
            f"{_LONGEST_SIDE[kind]} of {kind}; use png, fewer channels or smaller tiles"
        )
    Image.fromarray(drawing.rgb).save(buffer, kind.value, **settings[kind])
    return buffer.getvalue()


def encode_figure(drawing: TileLayout, kind: FigureFormat) -> bytes:
    """Return a drawing as an encoded PDF or SVG file; maps keep their pixels."""
    return encode_plot(drawing.figure(), kind.value)


def encode_plot(figure: Figure, kind: str, *, dpi: int = 150) -> bytes:
    """Return a matplotlib figure as an encoded `png`, `pdf` or `svg` file.

    Text stays text. Output is reproducible: no date, no random ids.
    """
    import matplotlib as mpl

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs every dropped table
    buffer = io.BytesIO()
    undated: Any = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    settings: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "featuremaps"}
    with _settings_lock, mpl.rc_context(settings):
        figure.savefig(
            buffer, format=kind, metadata=undated, dpi=dpi if kind == "png" else "figure"
        )
    return buffer.getvalue()
