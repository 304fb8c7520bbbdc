"""Writes what `health` found: a table, a figure and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.analysis.health import Health
from pipeline.foundation.atomic_files import write_bytes
from pipeline.gallery.health_figures import PANELS, health_figure, subject
from pipeline.gallery.result_folder import csv_bytes, replaced_folder
from pipeline.gallery.templating import templates, write_static
from pipeline.rendering.picture_formats import encode_plot

TABLE = "health.csv"
_FORMATS = ("png", "pdf", "svg")


def write_health(found: Health, folder: Path) -> Path:
    """Write `health.csv`, `health.json`, the figure and a page; return the page."""
    with replaced_folder(folder, TABLE) as temporary:
        files = {TABLE: csv_bytes(list(found.table())), "health.json": as_json(found).encode()}
        figure = health_figure(found)
        files |= {f"health.{kind}": encode_plot(figure, kind) for kind in _FORMATS}
        page = templates().get_template("health.html")
        files["index.html"] = page.render(**_page(found)).encode()
        for name, content in files.items():
            write_bytes(temporary / name, content, durable=False)
        write_static(temporary)
    return folder / "index.html"


def as_json(found: Health) -> str:
    """Return what was found as JSON; `null` stands where a figure is not defined."""
    rows = [{key: None if value != value else value for key, value in row.items()}
            for row in found.table()]  # fmt: skip
    content = {"archives": list(found.archives), "layers": rows, "notes": list(found.notes)}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def faults(found: Health) -> list[tuple[str, str, str]]:
    """Return `(archive, layer, fault)` in words, layer by layer."""
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
        "root": "",
        "subject": subject(found),
        "found": found,
        "layers": list(found.layers.values()),
        "panels": panels,
        "faults": faults(found),
        "several": several,
    }
