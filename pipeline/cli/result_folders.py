"""Default output folders of commands on several archives."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.archive.format import schema
from pipeline.common.places import Place, local


def default_folder(archives: list[Place], kind: str) -> Path:
    """Return a folder in the run or sweep folder of a single archive, or in `outputs`."""
    if len(archives) == 1:
        given = archives[0].expanduser()
        paths = schema.archives_of(given)
        if len(paths) > 1 and (folder := local(given)):
            return folder / kind
        if (archive := local(paths[0])) and archive.name == "archive":
            return archive.parent / kind
    return Path("outputs") / kind


def add_to_catalogue(page: Path, archives: Iterable[Place]) -> None:
    """Update the links in the catalogue of the sweep that contains the page, if any.

    A catalogue with archives in object stores is updated if the user named these `archives`.
    """
    sweep = page.parent.parent
    if (sweep / "catalogue.csv").is_file() and page.parent.name in ("health", "similarity"):
        from pipeline.cli.sweep import jobs
        from pipeline.gallery.catalogue import write_catalogue

        rows = jobs(sweep)
        remote = {row["archive"] for row in rows if "://" in row.get("archive", "")}
        if remote <= {str(archive) for archive in archives}:
            write_catalogue(sweep, rows)
