"""Catalogue of a sweep: a table of jobs, and each sample side by side across jobs.

A job without rendered pictures appears in the table only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pipeline.archive.reading.archive import Archive
from pipeline.common.atomic_files import write_bytes
from pipeline.common.errors import FeaturemapsError
from pipeline.common.places import place
from pipeline.common.progress import size
from pipeline.gallery.pages import index_name, label_of
from pipeline.gallery.templating import templates, write_static
from pipeline.rendering.file_names import sample_stem
from pipeline.rendering.options import THUMBNAILS, PictureFormat

_PAGE_SIZE = 25


@dataclass(frozen=True)
class _SampleViews:
    """One sample in all jobs that have it."""

    id: str
    label: str
    views: list[tuple[int, str, str]] = field(default_factory=list)  # job, thumbnails, page


def write_catalogue(folder: Path, jobs: Sequence[Mapping[str, Any]]) -> Path:
    """Write the catalogue's pages and return the first.

    Args:
        folder: folder of the sweep, with a folder for every job.
        jobs: record of each job: `job` (folder name) and `state`; for finished jobs `archive`,
            `storage_options`, `images`, `bytes`, `images_per_second` and `seconds`; for others
            `error`.
    """
    lines = []
    samples_by_id: dict[str, _SampleViews] = {}
    for number, job in enumerate(jobs):
        line: dict[str, Any] = {"layers": [], "gallery": "", "log": "", "archive": ""}
        job_folder = folder / job["job"]
        for name, path in (("gallery", "gallery/index.html"), ("log", "featuremaps.log")):
            line[name] = f"{job['job']}/{path}" if (job_folder / path).is_file() else ""
        if job.get("archive"):
            line |= _archive_of(folder, job, number, samples_by_id)
        line["bytes"] = size(job["bytes"]) if job.get("bytes") else ""
        lines.append({"images": "", "seconds": "", "error": "", **job, **line})
    samples = list(samples_by_id.values())
    starts = range(0, len(samples), _PAGE_SIZE) or range(1)
    (folder / "catalogue").mkdir(exist_ok=True)
    write_static(folder / "catalogue")
    template = templates().get_template("catalogue.html")
    for number, start in enumerate(starts, start=1):
        html = template.render(
            root="catalogue/",
            jobs=lines,
            failed=sum(line["state"] != "done" for line in lines),
            samples=samples[start : start + _PAGE_SIZE],
            samples_total=len(samples),
            number=number,
            count=len(starts),
            names=[index_name(i) for i in range(1, len(starts) + 1)],
            results=[
                name
                for name in ("similarity", "health")
                if (folder / name / "index.html").is_file()
            ],
        )
        write_bytes(folder / index_name(number), html.encode("utf-8"), durable=False)
    return folder / index_name(1)


def _archive_of(
    folder: Path, job: Mapping[str, Any], number: int, samples: dict[str, _SampleViews]
) -> dict[str, Any]:
    """Return the table columns of a job's archive; add its samples to `samples`."""
    path = place(job["archive"], storage_options=job.get("storage_options"))
    relative = str(path).removeprefix(f"{folder}/")
    try:
        with Archive.open(path) as archive:
            for sample in archive.samples:
                stem = sample_stem(sample.index, sample.id)
                paths = (f"pictures/{THUMBNAILS}/{stem}.{kind}" for kind in get_args(PictureFormat))
                job_folder = folder / job["job"]
                if strip := next((path for path in paths if (job_folder / path).is_file()), ""):
                    entry = samples.setdefault(sample.id, _SampleViews(sample.id, label_of(sample)))
                    page = f"{job['job']}/gallery/samples/{stem}.html"
                    entry.views.append((number, f"{job['job']}/{strip}", page))
            layers = [layer.entry.alias for layer in archive.layers.values()]
            return {"archive": relative, "layers": layers, "model": archive.manifest.model_title}
    except FeaturemapsError as error:
        return {"archive": relative, "error": str(error)}
