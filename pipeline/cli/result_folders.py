"""Where commands over several archives write: beside the run's or the sweep's other results."""

from __future__ import annotations

from pathlib import Path

from pipeline.archive.format import schema


def default_folder(archives: list[Path], kind: str) -> Path:
    """Return where results go: into the run's or the sweep's folder where there is just one."""
    if len(archives) == 1:
        found = schema.archives_of(archives[0].expanduser())
        if len(found) > 1:
            return archives[0].expanduser() / kind
        if found[0].name == "archive":
            return found[0].parent / kind
    return Path("outputs") / kind


def add_to_catalogue(page: Path) -> None:
    """Update the catalogue of a sweep where the page is in a folder of it: it links there."""
    sweep = page.parent.parent
    if (sweep / "catalogue.csv").is_file() and page.parent.name in ("health", "similarity"):
        from pipeline.cli.sweep import jobs
        from pipeline.gallery.catalogue import write_catalogue

        write_catalogue(sweep, jobs(sweep))
