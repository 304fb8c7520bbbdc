"""The tile of a sample's input."""

from pipeline.rendering.drawing.text_and_resize import fit, size_of
from pipeline.rendering.drawing.tile_layout import Tile
from pipeline.rendering.views import SampleView


def input_tile(sample: SampleView, cell: int, *, title: str = "input", note: str = "") -> Tile:
    """Return the model's input with its longer side at `cell` pixels; blank if it is not stored.

    The default note is the input's size.
    """
    note = note or (size_of(sample.image) if sample.has_input else "input not stored")
    return Tile(pixels=fit(sample.image, cell), title=title, note=note)
