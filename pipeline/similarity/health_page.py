"""Result files of `health`: a table, a figure and a page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.gallery import result_folder
from pipeline.similarity.health import Health
from pipeline.similarity.health_figures import PANELS, health_figure, subject

TABLE = "health.csv"


def write_health(result: Health, folder: Path) -> Path:
    """Write `health.csv`, `health.json`, the figure and a page; return the page."""
    return result_folder.write_results(folder, TABLE, _files(result))


def _files(result: Health) -> Iterator[tuple[str, bytes]]:
    yield TABLE, result_folder.csv_bytes(list(result.table()))
    yield "health.json", as_json(result).encode()
    yield from result_folder.plot_files("health", health_figure(result))
    yield "index.html", result_folder.page_bytes("health.html", **_page(result))


def as_json(result: Health) -> str:
    """Return the result as JSON; undefined values are `null`."""
    return result_folder.as_json_text(
        {
            "archives": list(result.archives),
            "layers": list(result.table()),
            "notes": [*result.notes],
        }
    )


def faults(result: Health) -> list[tuple[str, str, str]]:
    """Return `(archive, layer, message)` of every problem, layer by layer."""
    titles = dict(zip(result.archives, result.titles, strict=True))
    order = list(result.layers)
    cells = sorted(result.cells.values(), key=lambda cell: order.index(cell.layer))
    return [(titles[cell.archive], cell.alias, cell.fault) for cell in cells if cell.fault]


def _page(result: Health) -> dict[str, Any]:
    several = len(result.archives) > 1
    panels = []
    for panel in PANELS if several else PANELS[:6]:
        values = result.matrix(panel.figure)
        bad = values > 0 if panel.figure in ("nonfinite", "dead_fraction") else np.isnan(values)
        panels.append({
            "id": panel.figure,
            "title": panel.title,
            "note": panel.note,
            "rows": [[panel.text(value) for value in row] for row in values],
            "bad": bad.tolist(),
        })  # fmt: skip
    return {
        "subject": subject(result),
        "result": result,
        "layers": list(result.layers.values()),
        "panels": panels,
        "faults": faults(result),
        "several": several,
    }
