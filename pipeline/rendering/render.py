"""Render: archive → pictures of every sample.

Needs only the archive: no model, no GPU, no original images.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from threadpoolctl import threadpool_limits

from pipeline.archive.format import schema
from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.common.atomic_files import as_csv, write_bytes
from pipeline.common.errors import ConfigError, plural
from pipeline.common.machine import cores
from pipeline.common.places import Place, place
from pipeline.common.progress import Progress, size
from pipeline.rendering.notebook import rendered_html
from pipeline.rendering.options import RenderOptions
from pipeline.rendering.picture_files import DrawnPicture, PictureFolder
from pipeline.rendering.renderer import Renderer
from pipeline.rendering.sample_selection import chosen_samples
from pipeline.rendering.views import SampleView, sample_view
from pipeline.rendering.workers import draw_all

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Result of a rendering.

    Attributes:
        folder: output folder.
        samples: selected samples.
        folders: picture folder of each renderer.
        of_archive: pictures of the model or the whole dataset.
    """

    folder: Path
    samples: Sequence[StoredSample]
    folders: Sequence[PictureFolder]
    of_archive: Sequence[DrawnPicture] = ()

    def pictures(self, sample: StoredSample) -> list[DrawnPicture]:
        """Return a sample's pictures; a skipped sample has none."""
        if sample.error:
            return []
        return [picture for pictures in self.folders for picture in pictures.of(sample)]

    def _repr_html_(self) -> str:
        return rendered_html(self)


def render(
    archive: Archive | str | Place,
    folder: str | Path,
    renderers: Mapping[str, Renderer],
    options: RenderOptions | None = None,
) -> Rendered:
    """Draw every selected sample with every renderer, under `folder/pictures/<renderer>/`.

    Skipped samples have no pictures. Files are written atomically; existing pictures with the same
    options are not drawn again.

    Example:
        renderers = {"grid": pipeline.Grid(max_channels=9)}
        drawn = pipeline.render("outputs/archive", "outputs/drawn", renderers)
        for sample in drawn.samples:
            print(sample.id, [picture.path for picture in drawn.pictures(sample)])

    Args:
        archive: an open archive or its path.
        folder: parent folder of `pictures/`.
        renderers: folder name → renderer.
        options: samples, format and so on; None draws the first 20 samples as PNG.

    Raises:
        ConfigError: if a requested sample, layer or channel does not exist.
        ArchiveError: if the archive is damaged.
        DiskFullError: if the disk is full.
        RenderError: if a drawing process dies.
    """
    folder, options = Path(folder), options or RenderOptions()
    if not isinstance(renderers, Mapping):
        raise ConfigError('renderers: give each a name, such as {"grid": pipeline.Grid()}')
    for name, renderer in renderers.items():
        if isinstance(renderer, type):
            raise ConfigError(f"renderers: {name} is a class; use {renderer.__name__}(…)")
        if not isinstance(renderer, Renderer):
            raise ConfigError(
                f"renderers: {name} is {renderer!r}, not a renderer; use an object of its class"
            )
    if not isinstance(options, RenderOptions):
        raise ConfigError(f"options: must be RenderOptions(…), got {options!r}")
    if not isinstance(archive, Archive):
        with to_draw(archive, options) as opened:
            return render(opened, folder, renderers, options)
    archive = archive.with_layers(options.layers)
    samples = chosen_samples(archive.samples, options)
    drawable = [sample for sample in samples if not sample.error]
    statistics = {layer.name: layer.statistics for layer in archive.layers.values()}
    folders: list[PictureFolder] = []
    of_archive: list[DrawnPicture] = []

    def draw(sample: StoredSample) -> list[DrawnPicture]:
        """Draw and write the missing pictures of a sample; return all of its pictures."""
        view: SampleView | None = None
        drawn: list[DrawnPicture] = []
        for target in folders:
            pictures = target.of(sample)
            if not target.has(pictures):
                view = view or sample_view(archive, sample, statistics)
                pictures = target.write(target.renderer.draw(view), sample)
            drawn += pictures
        return drawn

    workers = cores() if options.num_workers is None else options.num_workers
    with ExitStack() as stack:
        for name, renderer in renderers.items():
            try:
                renderer.check({key: layer.entry.channels for key, layer in archive.layers.items()})
                target = PictureFolder(folder, name, renderer, archive, options, stack)
                of_archive += target.write_of_archive(target.renderer.draw_archive(archive))
            except ConfigError as error:
                raise ConfigError(f"renderers.{name}.{error}") from None
            folders.append(target)
        stack.enter_context(
            threadpool_limits(1, user_api="blas")
        )  # more BLAS threads stall each other
        progress = stack.enter_context(Progress("render", total=len(drawable)))
        for number, drawn in enumerate(chain(
            map(draw, drawable[:1]), draw_all(draw, drawable[1:], workers)
        )):  # fmt: skip
            files = [path for picture in drawn for path in (picture.path, *picture.figures)]
            nbytes = sum((folder / path).stat().st_size for path in files)
            if number == 0:
                count = len(files) * len(drawable)
                log.info(
                    "render: %s of %s, about %s (from the size of the first)",
                    plural(count, "picture"), plural(len(drawable), "sample"),
                    size(nbytes * len(drawable)),
                )  # fmt: skip
            progress.advance(1, nbytes=nbytes)
    rendered = Rendered(folder=folder, samples=samples, folders=folders, of_archive=of_archive)
    _write_index(rendered)
    return rendered


@contextmanager
def to_draw(path: str | Place, options: RenderOptions) -> Iterator[Archive]:
    """Open an archive with the selected layers; with `partial`, its finished part if incomplete."""
    archive_path = place(path)
    folder = schema.archive_folder(archive_path)
    complete = folder.is_file() or (folder / schema.COMPLETE).exists()
    open_archive = Archive.open if complete or not options.partial else Archive.open_partial
    with open_archive(archive_path) as archive:
        yield archive.with_layers(options.layers)


def _write_index(rendered: Rendered) -> None:
    head = ("picture", "renderer", "layer", "row", "id", "label", "label_name")
    blank = ("",) * 4
    rows: list[tuple[object, ...]] = [
        head, *((p.path, p.renderer, p.layer, *blank) for p in rendered.of_archive)
    ]  # fmt: skip
    for sample in rendered.samples:
        facts = (sample.index, sample.id, sample.label, sample.label_name)
        rows += [(p.path, p.renderer, p.layer, *facts) for p in rendered.pictures(sample)]
    write_bytes(rendered.folder / "index.csv", as_csv(rows), durable=False)
