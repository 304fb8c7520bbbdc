"""Result files of `health`: a table, heatmaps of layers × archives, and a page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.common.arrays import Array
from pipeline.common.errors import plural
from pipeline.common.progress import number
from pipeline.gallery import result_folder
from pipeline.rendering.drawing.picture_formats import default_style
from pipeline.rendering.drawing.text_and_resize import short
from pipeline.similarity.health import Health
from pipeline.similarity.similarity_figures import (
    INK,
    SOFT_INK,
    WITH_VALUES,
    models_of,
    set_text,
    unit_colors,
    write_in_cells,
)

TABLE = "health.csv"
_DECADES = 6


@dataclass(frozen=True, kw_only=True)
class Panel:
    """How a figure is shown."""

    figure: str  # a field of `LayerHealth`
    title: str
    text: Callable[[float], str]  # formats a value
    unit: Callable[[Array], Array]  # maps values to 0..1
    colormap: str
    note: str  # meaning of the colours


def percent(value: float) -> str:
    """Return a share for people.

    >>> percent(0.25), percent(0.0004), percent(0), percent(float("nan"))
    ('25 %', '<0.1 %', '0 %', '–')
    """
    if np.isnan(value):
        return "–"
    if 0 < value < 0.001:
        return "<0.1 %"
    return f"{100 * value:.1f} %" if 0 < value < 0.1 else f"{100 * value:.0f} %"


def change(value: float) -> str:
    """Return a relative change for people.

    >>> change(0.125), change(-1.0), change(37), change(-0.001), change(float("nan"))
    ('+12 %', '-100 %', '+3,700 %', '0 %', '–')
    """
    if np.isnan(value):
        return "–"
    return f"{100 * value:+,.0f} %" if abs(value) >= 0.005 else "0 %"


three_digits = partial(number, digits=3)


def whole_number(value: float) -> str:
    """Return a count for people.

    >>> whole_number(11760.0)
    '11,760'
    """
    return "–" if np.isnan(value) else f"{value:,.0f}"


def _logarithmic(values: Array) -> Array:
    top = float(np.nanmax(values, initial=0))
    if not top > 0:
        return np.where(np.isnan(values), np.nan, 0.0)
    positive = values[values > 0]
    low = max(float(positive.min()), top * 10.0**-_DECADES)
    ratio = np.log(top / low) or 1.0
    return np.asarray(np.log(np.maximum(values, low) / low) / ratio)


def _signed(values: Array) -> Array:
    top = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    return np.asarray(0.5 + 0.5 * np.sign(values) * np.sqrt(np.abs(values) / top))


def _any(values: Array) -> Array:
    return np.where(np.isnan(values), np.nan, (values > 0).astype(float))


def _doubling(values: Array) -> Array:
    return np.asarray(np.clip(0.5 + values / 2, 0, 1))


PANELS = (
    Panel(figure="dead_fraction", title="dead channels", text=percent, unit=np.asarray,
          colormap="viridis", note="all values exactly zero; 0 to 100 %"),
    Panel(figure="zero_fraction", title="zeros", text=percent, unit=np.asarray, colormap="viridis",
          note="share of all values; 0 to 100 %"),
    Panel(figure="mean", title="mean", text=three_digits, unit=_signed, colormap="RdBu_r",
          note="finite values; zero is white"),
    Panel(figure="std", title="standard deviation", text=three_digits, unit=_logarithmic,
          colormap="viridis", note="finite values; logarithmic"),
    Panel(figure="largest", title="largest magnitude", text=three_digits, unit=_logarithmic,
          colormap="viridis", note="finite values; logarithmic"),
    Panel(figure="nonfinite", title="not finite", text=whole_number, unit=_any, colormap="Reds",
          note="NaN or infinite values"),
    Panel(figure="mean_drift", title="drift of the mean", text=change, unit=_doubling,
          colormap="RdBu_r", note="against the first; ±100 %"),
    Panel(figure="std_drift", title="drift of the std", text=change, unit=_doubling,
          colormap="RdBu_r", note="against the first; ±100 %"),
)  # fmt: skip


@default_style()
def health_figure(result: Health) -> Figure:
    """Return one picture: a heatmap for every figure, layers in execution order."""
    rows, columns = len(result.layers), len(result.archives)
    names = [set_text(short(alias)) for alias in result.layers.values()]
    titles = [set_text(short(title, 24)) for title in result.titles]
    written = columns <= WITH_VALUES and rows <= 60
    wide = 0.62 if written else float(np.clip(6 / columns, 0.08, 0.4))
    tall = 0.24 if rows <= 60 else float(np.clip(16 / rows, 0.08, 0.24))
    panels = PANELS if columns > 1 else PANELS[:6]
    left = 0.25 + 0.072 * max(map(len, names))
    below = 0.15 + 0.066 * max(map(len, titles))
    width, height = max(wide * columns, 1.9), tall * rows
    across = int(np.clip((15 - left) // (width + 0.3), 1, len(panels)))
    down = -(-len(panels) // across)
    across = -(-len(panels) // down)
    block = height + below + 0.75
    size = left + across * (width + 0.3), 0.6 + down * block
    figure = Figure(figsize=size)
    for i, panel in enumerate(panels):
        row, column = divmod(i, across)
        x, y = left + column * (width + 0.3), size[1] - 0.6 - row * block - 0.5 - height
        box = (x / size[0], y / size[1], wide * columns / size[0], height / size[1])
        axes = figure.add_axes(box)
        values = result.matrix(panel.figure)
        colors = unit_colors(panel.unit(values), panel.colormap)
        axes.imshow(colors, interpolation="nearest", aspect="auto")
        axes.set_xticks(range(columns) if columns <= 60 else [], titles if columns <= 60 else [],
                        rotation=90, fontsize=8)  # fmt: skip
        with_text = column == 0 and rows <= 160
        axes.set_yticks(range(rows) if with_text else [], names if with_text else [],
                        fontsize=min(8, 72 * tall * 0.8))  # fmt: skip
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        top = y + height
        figure.text(x / size[0], (top + 0.24) / size[1], panel.title, fontsize=10,
                    fontweight="bold", color=INK)  # fmt: skip
        figure.text(x / size[0], (top + 0.08) / size[1], panel.note, fontsize=7, color=SOFT_INK)
        if written:
            write_in_cells(axes, colors, values, panel.text, 6.5)
    figure.text(0.1 / size[0], (size[1] - 0.28) / size[1], set_text(subject(result)), fontsize=11,
                fontweight="bold", color=INK)  # fmt: skip
    return figure


def subject(result: Health) -> str:
    """Return a description of the archives for titles."""
    count = len(result.archives)
    archives = f"{count} archives" if count > 1 else result.archives[0]
    return (
        f"Health of {plural(len(result.layers), 'layer')} · {models_of(result.models)} · {archives}"
    )


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
    many = len(result.archives) > 1
    panels = []
    for panel in PANELS if many else PANELS[:6]:
        values = result.matrix(panel.figure)
        bad = values > 0 if panel.figure in ("nonfinite", "dead_fraction") else np.isnan(values)
        panels.append((panel, values, bad))
    return {
        "subject": subject(result),
        "result": result,
        "layers": list(result.layers.values()),
        "panels": panels,
        "faults": faults(result),
        "several": many,
    }
