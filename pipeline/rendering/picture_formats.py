"""File formats of pictures: pixels for the screen, PDF and SVG for papers."""

from __future__ import annotations

import io
import logging
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from pipeline.rendering.options import FigureFormat, PictureFormat
from pipeline.rendering.png import write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]
_settings_lock = Lock()  # matplotlib's settings are the whole process's


class Drawing(Protocol):
    """What a picture shows, as pixels or as a figure that can be saved as vectors."""

    @property
    def rgb(self) -> Array:
        """Its pixels, uint8 `(height, width, rgb)`."""

    def painted(self) -> tuple[Array, Array | None]:
        """Return its pixels as numbers of a palette's colours, or as RGB and no palette."""

    def figure(self) -> Figure:
        """Return it as a figure of matplotlib's."""


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

    Maps keep their pixels, texts stay text. The same drawing gives the same bytes: no date, no
    random name.
    """
    import matplotlib as mpl

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # tells of every table left out
    buffer = io.BytesIO()
    undated = {FigureFormat.PDF: "CreationDate", FigureFormat.SVG: "Date"}[kind]
    settings: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "featuremaps"}
    with _settings_lock, mpl.rc_context(settings):
        drawing.figure().savefig(buffer, format=kind.value, metadata={undated: None})
    return buffer.getvalue()
