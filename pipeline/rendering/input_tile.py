"""The tile of a sample's input."""

from __future__ import annotations

from pipeline.rendering.drawing.text_and_resize import fit, size_of
from pipeline.rendering.drawing.tile_layout import Tile
from pipeline.rendering.views import SampleView


def input_tile(sample: SampleView, cell: int, *, title: str = "input", note: str = "") -> Tile:
    """Return what the model saw, `cell` pixels wide or high; a blank says if it is not stored.

    Without a note, its size stands there.
    """
    note = note or (size_of(sample.image) if sample.has_input else "input not stored")
    return Tile(pixels=fit(sample.image, cell), title=title, note=note)
