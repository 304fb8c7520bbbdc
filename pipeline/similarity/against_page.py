"""Result files of `rsa_against`: a table, a bar chart and a page."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from pipeline.gallery import result_folder
from pipeline.rendering.drawing.picture_formats import default_style
from pipeline.rendering.drawing.text_and_resize import short
from pipeline.similarity.against import Against
from pipeline.similarity.results import layer_names
from pipeline.similarity.similarity_figures import INK, SOFT_INK, blocks_of, set_text, subject
from pipeline.similarity.similarity_page import interval, layer_pages, shown

TABLE = "against.csv"
_BAND = "#d4d4dc"


def write_against(result: Against, folder: Path) -> Path:
    """Write `against.csv`, `against.json`, the bar chart and a page; return the page."""
    return result_folder.write_results(folder, TABLE, _files(result, folder))


def _files(result: Against, folder: Path) -> Iterator[tuple[str, bytes]]:
    yield TABLE, result_folder.csv_bytes(list(result.table()))
    yield "against.json", against_json(result).encode()
    yield from result_folder.plot_files("against", bar_chart(result))
    yield "index.html", result_folder.page_bytes(
        "against.html", result=result, subject=subject(result),
        pages=layer_pages(result.layers, folder), names=layer_names(result.layers),
        number=shown, interval=interval,
    )  # fmt: skip


def against_json(result: Against) -> str:
    """Return the result as JSON; undefined values are `null`."""
    content = {
        "subjects": list(result.subjects), "samples": result.samples, "rows": result.rows,
        "ceiling": list(result.ceiling), "notes": list(result.notes),
        "layers": [
            {"archive": layer.archive, "layer": layer.name, "model": layer.model,
             "value": float(result.value[i]), "low": float(result.low[i]),
             "high": float(result.high[i]), "each": result.each[:, i].tolist()}
            for i, layer in enumerate(result.layers)
        ],
    }  # fmt: skip
    return result_folder.as_json_text(content)


@default_style()
def bar_chart(result: Against) -> Figure:
    """Return a bar chart of layers in execution order, with intervals and the noise ceiling."""
    count, blocks = len(result.layers), blocks_of(result)
    names = [set_text(short(layer.alias)) for layer in result.layers]
    width = float(np.clip(0.32 * count + 1.6, 5.2, 16))
    height = 3.8 + 0.07 * max(map(len, names))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes, positions = figure.subplots(), np.arange(count)
    many = len(result.subjects) > 1
    if many:
        axes.axhspan(*result.ceiling, color=_BAND, zorder=0, linewidth=2, label="noise ceiling")
    for number, (title, start, stop) in enumerate(blocks):
        layers, label = slice(start, stop), set_text(short(title, 48)) if len(blocks) > 1 else None
        color = colormaps["tab10"](number % 10)
        axes.bar(positions[layers], result.value[layers], 0.75, color=color, label=label)
    for values in result.each if many else ():
        axes.plot(positions, values, ".", color=INK, alpha=0.5, markersize=4)
    if many:
        axes.plot([], [], ".", color=INK, alpha=0.5, label="one subject")
    finite = np.isfinite(result.low)
    if finite.any():
        ends = (result.value - result.low)[finite], (result.high - result.value)[finite]
        axes.errorbar(positions[finite], result.value[finite], np.maximum(ends, 0), fmt="none",
                      ecolor=INK, capsize=2, linewidth=1.2, label="95 % interval")  # fmt: skip
    for position in positions[np.isnan(result.value)]:
        axes.text(position, 0, " undefined", rotation=90, ha="center", va="bottom", fontsize=7,
                  color=SOFT_INK)  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(positions, names, rotation=90, fontsize=8 if count < 40 else 6)
    axes.set_xlim(-0.6, count - 0.4)
    label = f"RSA against {short(result.subjects[0], 40)}"
    title = f"RSA, mean over {len(result.subjects)} subjects" if many else set_text(label)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel("Spearman's ρ of RDMs")
    lines, texts = axes.get_legend_handles_labels()
    if lines:
        columns = max(1, int(width / (0.6 + 0.08 * max(map(len, texts)))))
        figure.legend(lines, texts, loc="outside lower left", ncols=columns, frameon=False,
                      fontsize=8)  # fmt: skip
    about = short(subject(result), int(width / 0.065))
    figure.suptitle(set_text(about), fontsize=8, color=SOFT_INK, x=0.01, ha="left")
    return figure
