"""Notebook view of similarities: a heatmap per measure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from pipeline.rendering.drawing.picture_formats import encode_plot
from pipeline.rendering.notebook import png_image
from pipeline.similarity.similarity_figures import heatmap, subject

if TYPE_CHECKING:
    from pipeline.similarity.results import Similarity


def similarity_html(found: Similarity) -> str:
    """Return heatmaps and notes as HTML; data is escaped."""
    pictures = (
        png_image(encode_plot(heatmap(found, measure), "png", dpi=100)) for measure in found.figures
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return f"{''.join(pictures)}<p>{escape(subject(found))}</p><ul>{notes}</ul>"
