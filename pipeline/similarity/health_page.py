"""Result files of `health`: a table, a figure and a page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.gallery.result_folder import (
    as_json_text,
    csv_bytes,
    page_bytes,
    plot_files,
    write_results,
)
from pipeline.similarity.health import Health
from pipeline.similarity.health_figures import PANELS, health_figure, subject

TABLE = "health.csv"


def write_health(found: Health, folder: Path) -> Path:
    """Write `health.csv`, `health.json`, the figure and a page; return the page."""
    return write_results(folder, TABLE, _files(found))


def _files(found: Health) -> Iterator[tuple[str, bytes]]:
    yield TABLE, csv_bytes(list(found.table()))
    yield "health.json", as_json(found).encode()
    yield from plot_files("health", health_figure(found))
    yield "index.html", page_bytes("health.html", **_page(found))


def as_json(found: Health) -> str:
    """Return the result as JSON; undefined values are `null`."""
    return as_json_text(
        {"archives": list(found.archives), "layers": list(found.table()), "notes": [*found.notes]}
    )


def faults(found: Health) -> list[tuple[str, str, str]]:
    """Return `(archive, layer, message)` of every problem, layer by layer."""
    titles = dict(zip(found.archives, found.titles, strict=True))
    order = list(found.layers)
    cells = sorted(found.cells.values(), key=lambda cell: order.index(cell.layer))
    return [(titles[cell.archive], cell.alias, cell.fault) for cell in cells if cell.fault]


def _page(found: Health) -> dict[str, Any]:
    several = len(found.archives) > 1
    panels = []
    for panel in PANELS if several else PANELS[:6]:
        values = found.matrix(panel.figure)
        bad = values > 0 if panel.figure in ("nonfinite", "dead_fraction") else np.isnan(values)
        panels.append({
            "id": panel.figure,
            "title": panel.title,
            "note": panel.note,
            "rows": [[panel.text(value) for value in row] for row in values],
            "bad": bad.tolist(),
        })  # fmt: skip
    return {
        "subject": subject(found),
        "found": found,
        "layers": list(found.layers.values()),
        "panels": panels,
        "faults": faults(found),
        "several": several,
    }
