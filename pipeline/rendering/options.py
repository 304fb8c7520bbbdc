"""What is drawn of an archive, and how the pictures are kept."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pipeline.common.configured import Natural, Several, Texts, configured
from pipeline.common.paths import PathText

THUMBNAILS = "thumbnails"
"""The renderer whose pictures are the gallery's table."""


class PictureFormat(StrEnum):
    """Format of every picture: PNG and WebP keep every colour exactly, JPEG is smaller."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


class FigureFormat(StrEnum):
    """Format of a figure for papers: PDF (its texts can be searched), SVG (texts as outlines)."""

    PDF = "pdf"
    SVG = "svg"


@configured
class RenderOptions:
    """What is drawn and how it is kept.

    Attributes:
        samples: ids, `all`, rows (`3`, `-1`), half-open ranges of rows (`0:100`), ids without
            ending or folder where only one sample fits, or globs over ids; empty takes the first
            20.
        layers: only these of the archive, by name, alias or glob; empty takes all.
        labels: only samples with one of these label names (or numbers); empty takes all.
        partial: draw what is finished of an archive that is not complete, marked as such.
        num_workers: how many draw side by side; 0 draws in the main thread; None takes one per
            core.
        format: `png`, `webp` (lossless) or `jpeg` (quality 92).
        figures: also as figures for papers, beside each picture: `pdf`, `svg`; slow.
        single_file: write the gallery also as one file with the pictures inside, for small runs.
        tensorboard: folder for TensorBoard events that hold the same pictures; None writes none.
        step: step of the training run under which TensorBoard shows them.
    """

    samples: Texts = ()
    layers: Texts = ()
    labels: Texts = ()
    partial: bool = False
    num_workers: Natural | None = None
    format: PictureFormat = PictureFormat.PNG
    figures: Annotated[tuple[FigureFormat, ...], Several] = ()
    single_file: bool = False
    tensorboard: PathText | None = None
    step: Natural = 0
