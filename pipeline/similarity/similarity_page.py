"""Result files of `similarity`: tables, figures and a page, written atomically."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.archive.format.manifest import Manifest
from pipeline.common.atomic_files import read_json
from pipeline.common.places import Place, local
from pipeline.gallery import result_folder
from pipeline.rendering.drawing.text_and_resize import short
from pipeline.rendering.file_names import layer_folders
from pipeline.similarity.measures import PARTS
from pipeline.similarity.results import ComparedLayer, Similarity, layer_names
from pipeline.similarity.similarity_figures import (
    WITH_VALUES,
    blocks_of,
    colors_as_text,
    heatmap,
    in_cell,
    ink_on,
    label_curves,
    scale_of,
    subject,
)

TABLE = "similarity.csv"
_RAMP = 24
_OF_LABELS = ("accuracy", "cka", "low", "high")


def write_similarity(result: Similarity, folder: str | Path) -> Path:
    """Write `similarity.csv`, `similarity.json`, `labels.csv`, heatmaps, curves and a page; return
    the page. Earlier results in the folder are replaced.

    Raises:
        ConfigError: when the folder holds other files.
        DiskFullError: when the disk is full.
    """
    folder = Path(folder)
    return result_folder.write_results(folder, TABLE, _files(result, folder))


def _files(result: Similarity, folder: Path) -> Iterator[tuple[str, bytes]]:
    yield TABLE, result_folder.csv_bytes(list(result.table()))
    yield "similarity.json", as_json(result).encode()
    for measure in result.figures:
        yield from result_folder.plot_files(measure, heatmap(result, measure))
    if result.labels:
        yield "labels.csv", result_folder.csv_bytes(label_table(result))
        yield from result_folder.plot_files("labels", label_curves(result))
    yield "index.html", result_folder.page_bytes("similarity.html", **_page(result, folder))


def label_table(result: Similarity) -> list[dict[str, Any]]:
    """Return the label separability of every layer as rows."""
    labels = result.labels
    assert labels is not None
    rows = []
    for _, start, stop in blocks_of(result):
        for i in range(start, stop):
            figures = {name: float(getattr(labels, name)[i]) for name in _OF_LABELS}
            rows.append({
                "archive": result.layers[i].archive, "layer": result.layers[i].name,
                "depth": i - start, **figures, "labels": labels.labels, "chance": labels.chance,
                "samples": result.samples,
            })  # fmt: skip
    return rows


def as_json(result: Similarity) -> str:
    """Return the result as JSON; undefined values are `null`."""
    content = {
        "layers": [
            {"archive": layer.archive, "layer": layer.name, "model": layer.model,
             "features": layer.features}
            for layer in result.layers
        ],
        "over": result.over, "rows": result.rows, "grid": result.grid,
        "samples": result.samples, "missing": result.missing, "skipped": result.skipped,
        "nonfinite": result.nonfinite, "notes": list(result.notes),
        "measures": {
            measure: {
                "rows": figures.rows,
                **{name: getattr(figures, name).tolist() for name in PARTS},
            }
            for measure, figures in result.figures.items()
        },
        "labels": label_table(result) if result.labels else None,
    }  # fmt: skip
    return result_folder.as_json_text(content)


def _page(result: Similarity, final: Path) -> dict[str, Any]:
    names = [layer.alias for layer in result.layers]
    charts = []
    for measure, figures in result.figures.items():
        scale = scale_of(measure, figures.value)
        charts.append(
            {
                "name": measure,
                "scale": scale,
                "colors": colors_as_text(scale.colors(figures.value)),
                "dark": ink_on(scale.colors(figures.value)).tolist(),
                "ramp": colors_as_text(
                    scale.colors(np.linspace(scale.low, scale.high, _RAMP)[None])
                )[0],
                "figures": figures,
            }
        )
    return {
        "result": result,
        "subject": subject(result),
        "names": names,
        "shorter": [short(name, 26) for name in names],
        "with_values": len(names) <= WITH_VALUES,
        "full": layer_names(result.layers),
        "pages": layer_pages(result.layers, final),
        "blocks": blocks_of(result),
        "charts": charts,
        "labels": label_table(result) if result.labels else [],
        "in_cell": in_cell,
        "number": shown,
        "interval": interval,
    }


def shown(value: float) -> str:
    """Return a figure for people, three digits after the point.

    >>> shown(0.12345), shown(float("nan")), shown(-0.00001)
    ('0.123', 'undefined', '0.000')
    """
    return "undefined" if np.isnan(value) else f"{value:.3f}".replace("-0.000", "0.000")


def interval(low: float, high: float) -> str:
    """Return an interval for people; a dash if undefined."""
    return "–" if np.isnan(low) else f"{shown(low)} to {shown(high)}"


def layer_pages(layers: Sequence[ComparedLayer], final: Path) -> list[str]:
    """Return every layer's page in its archive's gallery, relative to the folder."""
    pages: dict[Place, dict[str, str]] = {}
    for path in {layer.path for layer in layers}:
        gallery = gallery_of(path)
        folders = layer_folders(Manifest.read(path).layers) if gallery else {}
        pages[path] = {
            name: os.path.relpath(f"{gallery}/layers/{folder}.html", final.absolute())
            for name, folder in folders.items()
        }
    return [pages[layer.path].get(layer.name, "") for layer in layers]


def gallery_of(archive: Place) -> Path | None:
    """Return the gallery of an archive's run, or of a job of its sweep; None without one."""
    path = local(archive.absolute())
    if path is None:
        return None
    folders = [path.parent / "gallery"]
    if path.parent.name == "archives":  # in a sweep, the status files name the archives
        folders += [
            status.parent / "gallery"
            for status in sorted(path.parent.parent.glob("*/status.json"))
            if read_json(status).get("archive") == str(path)
        ]
    return next((folder for folder in folders if (folder / "layers").is_dir()), None)
