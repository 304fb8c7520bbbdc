"""Pictures as TensorBoard events: the same samples over the steps of a training run.

Picture files go in as they are; torch is not needed.

Format: TensorBoard's `event.proto` and `summary.proto`, as TFRecords.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pipeline.common.atomic_files import replacing
from pipeline.common.errors import ConfigError
from pipeline.common.paths import local_path
from pipeline.rendering.options import THUMBNAILS
from pipeline.rendering.render import Rendered

_VERSION = "brain.Event:2"
_RGB = 3


def prepare(folder: str | Path) -> Path:
    """Make the folder for events; before the long work, so that a mistake costs nothing."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError:
        raise ConfigError(
            "render.tensorboard: TensorBoard is not installed: pip "
            "install 'featuremaps[tensorboard]'"
        ) from None
    place = local_path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"render.tensorboard: {place}: {error.strerror}") from error
    return place


def write_events(rendered: Rendered, folder: str | Path, step: int = 0) -> Path:
    """Write every picture of a rendering to one event file; drawing the same again replaces it.

    Args:
        rendered: what `render` returned.
        folder: TensorBoard's log folder; each output folder and step has a file of its own in it.
        step: of the training run, at least 0.

    Returns:
        The file. Tags are `renderer/sample/layer`, or `renderer/title/layer` for pictures of the
        whole archive: one place for each picture, with a slider over the steps.
    """
    place = prepare(folder)
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    # TensorBoard reads the files of a run in the order of their names, and never goes back.
    of = hashlib.sha256(str(rendered.folder.absolute()).encode()).hexdigest()[:12]
    path = place / f"events.out.tfevents.{step:010d}.{of}"
    now = time.time()
    with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=now, file_version=_VERSION).SerializeToString())
        for tag, source in _tagged(rendered):
            with Image.open(source) as opened:
                width, height = opened.size
            image = Summary.Image(
                width=width,
                height=height,
                colorspace=_RGB,
                encoded_image_string=source.read_bytes(),
            )
            summary = Summary(value=[Summary.Value(tag=tag, image=image)])
            records.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())
    return path


def _tagged(rendered: Rendered) -> Iterator[tuple[str, Path]]:
    found = [(picture, picture.title) for picture in rendered.of_archive]
    found += [(p, sample.id) for sample in rendered.samples for p in rendered.pictures(sample)]
    for picture, name in found:
        if picture.renderer != THUMBNAILS:
            parts = (picture.renderer, name, picture.layer)
            yield "/".join(part for part in parts if part), rendered.folder / picture.path
