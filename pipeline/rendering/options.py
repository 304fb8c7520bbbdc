"""Rendering options: samples, layers and formats."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator

from pipeline.common.configured import Natural, Several, Texts, configured
from pipeline.common.paths import PathText

THUMBNAILS = "thumbnails"
"""Name of the renderer that draws the gallery's table."""


PictureFormat = Literal["png", "webp", "jpeg"]
FigureFormat = Literal["pdf", "svg"]


def _no_figure(value: object) -> object:
    if value in get_args(FigureFormat):
        raise ValueError(
            f"unknown value {value!r}; for vector figures, set render.figures=[{value}]"
        )
    return value


@configured
class RenderOptions:
    """Options of a rendering run.

    Attributes:
        samples: ids, `all`, rows (`3`, `-1`), half-open ranges of rows (`0:100`), ids without
            extension or folder if only one sample matches, or globs over ids; empty selects the
            first 20.
        layers: names, aliases or globs of the layers to draw; empty selects all.
        labels: label names (or numbers) of the samples to draw; empty selects all.
        partial: draw the finished part of an incomplete archive, marked as incomplete.
        num_workers: number of parallel workers; 0 draws in the main thread; None uses one per core.
        format: `png`, `webp` (lossless) or `jpeg` (quality 92).
        figures: also write each picture as a figure for papers: `pdf`, `svg`; slow.
        single_file: also write the gallery as a single file with embedded pictures, for small runs.
        tensorboard: folder for TensorBoard events with the same pictures; None disables them.
        step: training step of the TensorBoard events.
    """

    samples: Texts = ()
    layers: Texts = ()
    labels: Texts = ()
    partial: bool = False
    num_workers: Natural | None = None
    format: Annotated[PictureFormat, BeforeValidator(_no_figure)] = "png"
    figures: Annotated[tuple[FigureFormat, ...], Several] = ()
    single_file: bool = False
    tensorboard: PathText | None = None
    step: Natural = 0

    def __post_init__(self) -> None:
        if self.step and not self.tensorboard:
            raise ValueError("step: needs render.tensorboard=FOLDER")
