"""Default output folders of commands on several archives."""

from pathlib import Path

from pipeline.archive.format import schema


def default_folder(archives: list[Path], kind: str) -> Path:
    """Return a folder in the run or sweep folder of a single archive, or in `outputs`."""
    if len(archives) == 1:
        paths = schema.archives_of(archives[0].expanduser())
        if len(paths) > 1:
            return archives[0].expanduser() / kind
        if paths[0].name == "archive":
            return paths[0].parent / kind
    return Path("outputs") / kind


def add_to_catalogue(page: Path) -> None:
    """Update the links in the catalogue of the sweep that contains the page, if any."""
    sweep = page.parent.parent
    if (sweep / "catalogue.csv").is_file() and page.parent.name in ("health", "similarity"):
        from pipeline.cli.sweep import jobs
        from pipeline.gallery.catalogue import write_catalogue

        write_catalogue(sweep, jobs(sweep))
