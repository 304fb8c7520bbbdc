"""Writes what `rsa_against` found: a table, a bar chart, and a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from pipeline.gallery.result_folder import (
    as_json_text,
    csv_bytes,
    page_bytes,
    plot_files,
    write_results,
)
from pipeline.similarity.against import Against
from pipeline.similarity.results import layer_names
from pipeline.similarity.similarity_figures import blocks_of, set_text, short, subject
from pipeline.similarity.similarity_page import interval, layer_pages, shown

TABLE = "against.csv"
_INK, _SOFT, _BAND = "#1c1c20", "#62626c", "#d4d4dc"


def write_against(found: Against, folder: Path) -> Path:
    """Write `against.csv`, `against.json`, the bar chart and a page; return the page."""
    return write_results(folder, TABLE, _files(found, folder))


def _files(found: Against, folder: Path) -> Iterator[tuple[str, bytes]]:
    yield TABLE, csv_bytes(list(found.table()))
    yield "against.json", against_json(found).encode()
    yield from plot_files("against", bar_chart(found))
    yield "index.html", page_bytes(
        "against.html", found=found, subject=subject(found),
        pages=layer_pages(found.layers, folder), names=layer_names(found.layers),
        number=shown, interval=interval,
    )  # fmt: skip


def against_json(found: Against) -> str:
    """Return what was found as JSON; `null` stands where a figure is undefined."""
    content = {
        "subjects": list(found.subjects), "samples": found.samples, "rows": found.rows,
        "ceiling": list(found.ceiling), "notes": list(found.notes),
        "layers": [
            {"archive": layer.archive, "layer": layer.name, "model": layer.model,
             "value": float(found.value[i]), "low": float(found.low[i]),
             "high": float(found.high[i]), "each": found.each[:, i].tolist()}
            for i, layer in enumerate(found.layers)
        ],
    }  # fmt: skip
    return as_json_text(content)


def bar_chart(found: Against) -> Figure:
    """Return a bar for every layer, in execution order, with its interval and the noise ceiling."""
    count, blocks = len(found.layers), blocks_of(found)
    names = [set_text(short(layer.alias)) for layer in found.layers]
    width = float(np.clip(0.32 * count + 1.6, 5.2, 16))
    height = 3.8 + 0.07 * max(map(len, names))
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes, places = figure.subplots(), np.arange(count)
    several = len(found.subjects) > 1
    if several:
        axes.axhspan(*found.ceiling, color=_BAND, zorder=0, linewidth=2, label="noise ceiling")
    for number, (title, start, stop) in enumerate(blocks):
        part, label = slice(start, stop), set_text(short(title, 48)) if len(blocks) > 1 else None
        color = colormaps["tab10"](number % 10)
        axes.bar(places[part], found.value[part], 0.75, color=color, label=label)
    for values in found.each if several else ():
        axes.plot(places, values, ".", color=_INK, alpha=0.5, markersize=4)
    if several:
        axes.plot([], [], ".", color=_INK, alpha=0.5, label="one subject")
    known = np.isfinite(found.low)
    if known.any():
        ends = (found.value - found.low)[known], (found.high - found.value)[known]
        axes.errorbar(places[known], found.value[known], np.maximum(ends, 0), fmt="none",
                      ecolor=_INK, capsize=2, linewidth=1.2, label="95 % interval")  # fmt: skip
    for place in places[np.isnan(found.value)]:
        axes.text(place, 0, " undefined", rotation=90, ha="center", va="bottom", fontsize=7,
                  color=_SOFT)  # fmt: skip
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_xticks(places, names, rotation=90, fontsize=8 if count < 40 else 6)
    axes.set_xlim(-0.6, count - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    one = f"RSA against {short(found.subjects[0], 40)}"
    title = f"RSA, mean over {len(found.subjects)} subjects" if several else set_text(one)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel("Spearman's ρ of RDMs")
    lines, texts = axes.get_legend_handles_labels()
    if lines:
        columns = max(1, int(width / (0.6 + 0.08 * max(map(len, texts)))))
        figure.legend(lines, texts, loc="outside lower left", ncols=columns, frameon=False,
                      fontsize=8)  # fmt: skip
    about = short(subject(found), int(width / 0.065))
    figure.suptitle(set_text(about), fontsize=8, color=_SOFT, x=0.01, ha="left")
    return figure
