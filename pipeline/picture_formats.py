"""File formats of pictures: pixels for the screen, PDF and SVG for papers."""

from __future__ import annotations

import io
import logging
from enum import StrEnum
from threading import Lock
from typing import Any

from PIL import Image

from pipeline.png import write_png
from pipeline.renderers.base import Drawing

_settings_lock = Lock()  # matplotlib's settings are the whole process's


class PictureFormat(StrEnum):
    """Format of every picture: PNG and WebP keep every colour exactly, JPEG is smaller."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


class FigureFormat(StrEnum):
    """Format of a figure for papers: PDF (its texts can be searched), SVG (texts as outlines)."""

    PDF = "pdf"
    SVG = "svg"


def encode(drawing: Drawing, kind: PictureFormat) -> bytes:
    """Return a drawing as the content of a file."""
    if kind is PictureFormat.PNG:
        return write_png(*drawing.painted())
    settings: dict[PictureFormat, dict[str, Any]] = {
        PictureFormat.WEBP: {"lossless": True, "quality": 20, "method": 1},
        PictureFormat.JPEG: {"quality": 92},
    }
    buffer = io.BytesIO()
    Image.fromarray(drawing.rgb).save(buffer, kind.value, **settings[kind])
    return buffer.getvalue()


def encode_figure(drawing: Drawing, kind: FigureFormat) -> bytes:
    """Return a drawing as the content of a PDF or SVG file.

    Maps keep their pixels. The same drawing gives the same bytes: no date, no random name.
    """
    import matplotlib as mpl

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # tells of every table left out
    buffer = io.BytesIO()
    undated = {FigureFormat.PDF: "CreationDate", FigureFormat.SVG: "Date"}[kind]
    settings: Any = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "featuremaps"}
    with _settings_lock, mpl.rc_context(settings):
        drawing.figure().savefig(buffer, format=kind.value, metadata={undated: None})
    return buffer.getvalue()
