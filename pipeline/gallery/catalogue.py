"""The catalogue of a sweep: its jobs with what became of them, and the same sample side by side
across them, as pages at the sweep's root.

In: the jobs' statuses, their archives, and the thumbnails of their galleries. A job that was not
drawn has a line in the table only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.archive.reading.archive import Archive
from pipeline.common.atomic_files import write_bytes
from pipeline.common.errors import ArchiveError
from pipeline.common.progress import size
from pipeline.gallery.pages import index_name, label_of
from pipeline.gallery.templating import templates, write_static
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.rendering.file_names import sample_stem
from pipeline.rendering.options import THUMBNAILS, PictureFormat

_PAGE_SIZE = 25


@dataclass(frozen=True)
class _Seen:
    """One sample, in all jobs that have it.

    Attributes:
        id, label: of the sample.
        views: per job, `(job, strip, page)`: its number, thumbnails and gallery page.
    """

    id: str
    label: str
    views: list[tuple[int, str, str]] = field(default_factory=list)


def write_catalogue(folder: Path, jobs: Sequence[Mapping[str, Any]]) -> Path:
    """Write the catalogue's pages and return the first.

    Args:
        folder: the sweep's; every job has a folder in it.
        jobs: what is known of each: `job` (its folder's name), `state`, and of finished ones
            `archive`, `images`, `bytes`, `images_per_second`, `seconds`; of others `error`.
    """
    lines = []
    samples: dict[str, _Seen] = {}
    for number, job in enumerate(jobs):
        line: dict[str, Any] = {"layers": [], "gallery": "", "log": "", "archive": ""}
        home = folder / job["job"]
        for name, path in (("gallery", "gallery/index.html"), ("log", "featuremaps.log")):
            line[name] = f"{job['job']}/{path}" if (home / path).is_file() else ""
        if job.get("archive"):
            line |= _archive_of(folder, job, number, samples)
        line["bytes"] = size(job["bytes"]) if job.get("bytes") else ""
        lines.append({"images": "", "seconds": "", "error": "", **job, **line})
    found = list(samples.values())
    starts = range(0, len(found), _PAGE_SIZE) or range(1)
    (folder / "catalogue").mkdir(exist_ok=True)
    write_static(folder / "catalogue")
    cells = Thumbnails()
    template = templates().get_template("catalogue.html")
    for number, start in enumerate(starts, start=1):
        html = template.render(
            root="catalogue/",
            jobs=lines,
            failed=sum(line["state"] != "done" for line in lines),
            samples=found[start : start + _PAGE_SIZE],
            samples_total=len(found),
            number=number,
            count=len(starts),
            names=[index_name(i) for i in range(1, len(starts) + 1)],
            cell=cells.tile_size,
            pitch=cells.tile_size + cells.gap,
            results=[
                kind
                for kind in ("similarity", "health")
                if (folder / kind / "index.html").is_file()
            ],
        )
        write_bytes(folder / index_name(number), html.encode("utf-8"), durable=False)
    return folder / index_name(1)


def _archive_of(
    folder: Path, job: Mapping[str, Any], number: int, samples: dict[str, _Seen]
) -> dict[str, Any]:
    """Return what the table says of a job's archive, and add its samples to those seen."""
    place = Path(job["archive"])
    shown = str(place.relative_to(folder)) if place.is_relative_to(folder) else str(place)
    try:
        with Archive.open(place) as archive:
            for sample in archive.samples:
                stem = sample_stem(sample.index, sample.id)
                strip = _strip(folder / job["job"], stem)
                if strip:
                    seen = samples.setdefault(sample.id, _Seen(sample.id, label_of(sample)))
                    page = f"{job['job']}/gallery/samples/{stem}.html"
                    seen.views.append((number, f"{job['job']}/{strip}", page))
            layers = [layer.entry.alias for layer in archive.layers.values()]
            return {"archive": shown, "layers": layers, "model": archive.manifest.model_title}
    except ArchiveError as error:
        return {"archive": shown, "error": str(error)}


def _strip(home: Path, stem: str) -> str:
    paths = (f"pictures/{THUMBNAILS}/{stem}.{kind.value}" for kind in PictureFormat)
    return next((path for path in paths if (home / path).is_file()), "")
