"""Render: archive → pictures of every sample.

Needs only the archive: no model, no GPU, no original images.
"""

from __future__ import annotations

import io
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.archive.reader import Archive, StoredSample
from pipeline.durable import write_bytes
from pipeline.errors import ConfigError
from pipeline.names import folder_name, sample_stem, suggestion
from pipeline.progress import Progress
from pipeline.renderers.base import Array, Picture, Renderer, SampleView, as_layer_view

log = logging.getLogger(__name__)


class PictureFormat(StrEnum):
    """File format of pictures: PNG and WebP keep every colour exactly, JPEG is smaller."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """What is drawn and how it is kept.

    Attributes:
        samples: `all`, a half-open range of rows such as `0:100`, or sample ids.
        num_workers: drawing threads; 0 draws in the main thread; None takes one per core.
        format: `png`, `webp` (lossless) or `jpeg` (quality 92).
    """

    samples: tuple[str, ...] = ("all",)
    num_workers: int | None = None
    format: PictureFormat = PictureFormat.PNG

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", tuple(str(sample) for sample in self.samples))
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {self.num_workers}")


@dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """A picture file.

    Attributes:
        renderer: its name in the configuration.
        layer: what it shows, None where it shows the whole sample.
        path: relative to the output folder.
    """

    renderer: str
    layer: str | None
    path: Path


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What was drawn.

    Attributes:
        folder: the output folder.
        samples: the chosen samples.
        pictures: those of each sample, by row.
        of_model: those of the model itself.
    """

    folder: Path
    samples: Sequence[StoredSample]
    pictures: Mapping[int, Sequence[DrawnPicture]]
    of_model: Sequence[DrawnPicture] = ()


def render(
    archive: Archive,
    folder: Path,
    renderers: Mapping[str, Renderer],
    options: RenderOptions | None = None,
) -> Rendered:
    """Draw every chosen sample with every renderer, under `folder/pictures/<renderer>/`.

    Skipped samples have no pictures. Every file is written whole or not at all.

    Raises:
        ConfigError: when a sample or channel is asked for that is not there.
        ArchiveError: when the archive is damaged.
        DiskFullError: when the disk is full.
    """
    options = options or RenderOptions()
    channels = {layer.name: layer.entry.channels for layer in archive.layers.values()}
    of_model: list[tuple[str, Picture]] = []
    for name, renderer in renderers.items():
        try:
            renderer.check(channels)
            pictures_of_model = renderer.draw_model(model_name(archive), archive.filters)
            of_model += [(name, picture) for picture in pictures_of_model]
        except ConfigError as error:
            raise ConfigError(f"renderers.{name}.{error}") from None
    samples = choose_samples(archive, options.samples)
    drawable = [sample for sample in samples if not sample.error]

    def draw(sample: StoredSample) -> list[DrawnPicture]:
        return draw_sample(archive, folder, renderers, sample, options.format)

    workers = _worker_count(options)
    pictures: dict[int, list[DrawnPicture]] = {}
    with Progress("render", total=len(drawable)) as progress:
        for sample, drawn in zip(drawable, _in_order(draw, drawable, workers), strict=True):
            pictures[sample.index] = drawn
            nbytes = sum((folder / picture.path).stat().st_size for picture in drawn)
            progress.advance(1, nbytes=nbytes)
    drawn_once = [
        _write(folder, name, picture, folder_name(picture.layer or "model"), options.format)
        for name, picture in of_model
    ]
    return Rendered(folder=folder, samples=samples, pictures=pictures, of_model=drawn_once)


def choose_samples(archive: Archive, wanted: Sequence[str]) -> list[StoredSample]:
    """Return the samples that `all`, a range `start:stop` or ids name.

    Raises:
        ConfigError: when there is no such sample.
    """
    if len(wanted) == 1 and wanted[0] == "all":
        return list(archive.samples)
    by_id = {sample.id: sample for sample in archive.samples}
    if len(wanted) == 1 and wanted[0] not in by_id and ":" in wanted[0]:
        ends = wanted[0].split(":")
        if len(ends) == 2 and all(end == "" or end.lstrip("-").isdigit() for end in ends):
            start, stop = (int(end) if end else None for end in ends)
            found = list(archive.samples)[start:stop]
            if not found:
                raise ConfigError(
                    f"render.samples: {wanted[0]} is empty; the archive has {len(archive)} samples"
                )
            return found
    for name in wanted:
        if name not in by_id:
            raise ConfigError(f"render.samples: no sample {name!r}; {suggestion(name, by_id)}")
    return [by_id[name] for name in wanted]


def view(archive: Archive, sample: StoredSample) -> SampleView:
    """Read one sample of the archive, every layer as maps."""
    return SampleView(
        index=sample.index,
        id=sample.id,
        label_name=sample.label_name,
        model=model_name(archive),
        image=archive.image(sample.index),
        layers=[
            as_layer_view(
                layer.name,
                layer.alias,
                layer.entry.axes,
                layer[sample.index],
                grid=layer.entry.grid,
                prefix_tokens=layer.entry.prefix_tokens,
            )
            for layer in archive.layers.values()
        ],
    )


def model_name(archive: Archive) -> str:
    """Return the name of the archive's model, as its configuration gives it."""
    model = archive.manifest.config.get("model")
    return str(model.get("name", "model")) if isinstance(model, Mapping) else "model"


def draw_sample(
    archive: Archive,
    folder: Path,
    renderers: Mapping[str, Renderer],
    sample: StoredSample,
    kind: PictureFormat,
) -> list[DrawnPicture]:
    """Draw and write all pictures of one sample."""
    seen = view(archive, sample)
    stem = sample_stem(sample.index, sample.id)
    drawn = []
    for name, renderer in renderers.items():
        for picture in renderer.draw(seen):
            within = f"{folder_name(picture.layer)}/{stem}" if picture.layer is not None else stem
            drawn.append(_write(folder, name, picture, within, kind))
    return drawn


def _write(
    folder: Path, name: str, picture: Picture, within: str, kind: PictureFormat
) -> DrawnPicture:
    """Write a picture of the renderer `name` as `pictures/<name>/<within>.<format>`."""
    path = Path("pictures") / folder_name(name) / f"{within}.{kind.value}"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / path, encode(picture.rgb, kind), durable=False)
    return DrawnPicture(renderer=name, layer=picture.layer, path=path)


def encode(rgb: Array, kind: PictureFormat) -> bytes:
    """Return a picture, uint8 `(height, width, rgb)`, as the content of a file."""
    settings: dict[PictureFormat, dict[str, Any]] = {
        PictureFormat.PNG: {"compress_level": 3},
        PictureFormat.WEBP: {"lossless": True, "quality": 20, "method": 1},
        PictureFormat.JPEG: {"quality": 92},
    }
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind.value, **settings[kind])
    return buffer.getvalue()


def _worker_count(options: RenderOptions) -> int:
    return len(os.sched_getaffinity(0)) if options.num_workers is None else options.num_workers


def _in_order(
    draw: Any, samples: Sequence[StoredSample], workers: int
) -> Iterator[list[DrawnPicture]]:
    """Yield what `draw` returns for each sample, in order, with a bounded number under way."""
    if workers == 0:
        yield from map(draw, samples)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[DrawnPicture]]] = deque()
        try:
            for sample in samples:
                waiting.append(pool.submit(draw, sample))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
