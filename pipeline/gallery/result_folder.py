"""Folders of tables, figures and a page, written atomically."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.common.atomic_files import as_csv, new_folder, write_bytes
from pipeline.common.errors import ConfigError
from pipeline.gallery.templating import templates, write_static
from pipeline.rendering.drawing.picture_formats import encode_plot

FORMATS = ("png", "pdf", "svg")


def write_results(folder: Path, table: str, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write files and the pages' static assets to a folder atomically; return the page.

    Args:
        folder: a new folder, or one with earlier results of this kind, which is replaced.
        table: name of the file that identifies such results.
        files: names and contents, generated after the folder is checked.
    """
    if folder.exists() and not (folder / table).is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: the folder exists and holds other files; use a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as temporary:
        for name, content in files:
            write_bytes(temporary / name, content, durable=False)
        write_static(temporary)
    return folder / "index.html"


def plot_files(stem: str, figure: Figure) -> Iterator[tuple[str, bytes]]:
    """Yield a matplotlib figure as a file per format."""
    for kind in FORMATS:
        yield f"{stem}.{kind}", encode_plot(figure, kind)


def page_bytes(template: str, **values: Any) -> bytes:
    """Return a rendered page of results."""
    return templates().get_template(template).render(root="", **values).encode()


def as_json_text(content: Any) -> str:
    """Return results as JSON; undefined values are `null`."""
    return json.dumps(without_nan(content), indent=1) + "\n"


def without_nan(value: Any) -> Any:
    """Return nested values with NaN replaced by None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def csv_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as CSV in UTF-8; NaN is empty."""
    values = (["" if value != value else value for value in row.values()] for row in rows)
    return as_csv([rows[0], *values])
