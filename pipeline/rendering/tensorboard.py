"""Pictures as TensorBoard events: the same samples over the steps of a training run.

Picture files are embedded unchanged; torch is not needed.

Format: TensorBoard's `event.proto` and `summary.proto`, as TFRecords.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pipeline.common.atomic_files import replacing
from pipeline.common.errors import reraised
from pipeline.common.paths import local_path
from pipeline.rendering.options import THUMBNAILS
from pipeline.rendering.render import Rendered

_VERSION = "brain.Event:2"
_RGB = 3


def prepare(folder: str | Path) -> Path:
    """Create the event folder; called before rendering so that errors surface early."""
    with reraised("render.tensorboard", hint="; run: pip install 'featuremaps[tensorboard]'"):
        import tensorboard.summary.writer.record_writer  # noqa: F401
    path = local_path(folder)
    with reraised(f"render.tensorboard: {path}", of=OSError):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_events(rendered: Rendered, folder: str | Path, step: int = 0) -> Path:
    """Write every picture of a rendering to one event file, replacing an earlier one.

    Args:
        folder: TensorBoard's log folder; each output folder and step has its own file there.

    Returns:
        The event file. Tags are `renderer/sample/layer`, or `renderer/title/layer` for pictures of
        the whole archive, so that TensorBoard shows a slider over the steps for each picture.
    """
    log_folder = prepare(folder)
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    # TensorBoard reads the files of a run in name order, and never an earlier one again.
    source_hash = hashlib.sha256(str(rendered.folder.absolute()).encode()).hexdigest()[:12]
    path = log_folder / f"events.out.tfevents.{step:010d}.{source_hash}"
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
    pictures = [(picture, picture.title) for picture in rendered.of_archive]
    pictures += [(p, sample.id) for sample in rendered.samples for p in rendered.pictures(sample)]
    for picture, name in pictures:
        if picture.renderer != THUMBNAILS:
            parts = (picture.renderer, name, picture.layer)
            yield "/".join(part for part in parts if part), rendered.folder / picture.path
