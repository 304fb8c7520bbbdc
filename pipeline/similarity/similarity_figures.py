"""Figures of similarity: heatmaps of layer pairs, and label separability by depth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.common.arrays import Array
from pipeline.common.errors import one_line, plural
from pipeline.rendering.drawing.picture_formats import default_style, encode_plot
from pipeline.rendering.drawing.text_and_resize import short
from pipeline.rendering.notebook import png_image
from pipeline.similarity.measure_names import Measure

if TYPE_CHECKING:
    from pipeline.similarity.against import Against
    from pipeline.similarity.results import Similarity

WITH_VALUES = 14
"""Maximum number of columns with values in the cells."""
INK, SOFT_INK = "#1c1c20", "#62626c"
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_MARKERS = "osD^v"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a measure is coloured."""

    title: str
    low: float  # values below have its colour
    high: float
    colormap: str  # bright where layers are alike
    note: str  # the range in words

    def colors(self, values: Array) -> Array:
        """Return RGB colours 0..1, `(…, rgb)`; grey where a value is not known."""
        return unit_colors((values - self.low) / (self.high - self.low), self.colormap)


def unit_colors(unit: Array, colormap: str) -> Array:
    """Return RGB colours 0..1, `(…, rgb)`, of values 0..1, clipped; grey where one is NaN."""
    colors = colormaps[colormap](np.clip(np.nan_to_num(unit), 0, 1))[..., :3]
    return np.asarray(np.where(np.isnan(unit)[..., None], np.array([220, 220, 226]) / 255, colors))


def scale_of(measure: Measure, values: Array) -> Scale:
    """Return how to colour the values of a measure."""
    title, low, high, colormap = "RSA (Spearman's ρ of RDMs)", 0.0, 1.0, "viridis"
    note = "colours from 0 to 1; values below 0 look like 0"
    if measure == "cka":
        title, note = "debiased linear CKA", "colours from 0 to 1; estimates below 0 look like 0"
    elif measure == "procrustes":
        title, high, colormap = "angular Procrustes distance (radians)", np.pi / 2, "viridis_r"
        note = "colours from 0 (alike) to π/2"
    elif np.nanmin(values, initial=0) < -0.1:
        low, colormap, note = -1.0, "RdBu_r", "colours from -1 to 1"
    note += "; grey is undefined" if np.isnan(values).any() else ""
    return Scale(title=title, low=low, high=high, colormap=colormap, note=note)


def blocks_of(result: Similarity | Against) -> list[tuple[str, int, int]]:
    """Return every archive's title and its range of layers."""
    blocks, start = [], 0
    for title, layers in groupby(result.layers, key=lambda layer: layer.title):
        stop = start + len(list(layers))
        blocks.append((title, start, stop))
        start = stop
    return blocks


def subject(result: Similarity | Against) -> str:
    """Return a description of the comparison for titles."""
    models = models_of(layer.model for layer in result.layers)
    return f"{models} · {plural(result.samples, 'sample')} · {result.rows}"


def models_of(names: Iterable[str]) -> str:
    """Return the models, each once, the first three by name."""
    models = list(dict.fromkeys(names))
    return ", ".join(models[:3]) + (" …" if len(models) > 3 else "")


@default_style()
def heatmap(result: Similarity, measure: Measure) -> Figure:
    """Return the heatmap of a measure: layers in execution order, archives in blocks."""
    values = result.figures[measure].value
    count, scale = len(values), scale_of(measure, values)
    cell = float(np.clip(9 / count, 0.15, 0.55))
    text = float(np.clip(cell * 46, 5.5, 10))
    names = [set_text(short(layer.alias)) for layer in result.layers]
    margin = 0.095 * text / 10 * max(len(name) for name in names) + 0.3
    blocks = blocks_of(result)
    beside = 0.25 if len(blocks) > 1 else 0.0
    side = max(cell * count, 2.4)
    title = f"{scale.title} between layers"
    width = max(margin + beside + side + 1.1, 0.2 + 0.1 * len(title), 0.2 + 0.058 * len(scale.note))
    height = margin + beside + side + 0.9
    figure = Figure(figsize=(width, height))
    left, bottom = (margin + beside) / width, (margin + beside) / height
    axes = figure.add_axes((left, bottom, side / width, side / height))
    axes.imshow(scale.colors(values), interpolation="nearest", aspect="equal")
    axes.set_xticks(range(count), names, rotation=90, fontsize=text)
    axes.set_yticks(range(count), names, fontsize=text)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if count <= WITH_VALUES:
        write_in_cells(axes, scale.colors(values), values, in_cell, 0.82 * text)
    for name, start, stop in blocks if len(blocks) > 1 else ():
        for line in (axes.axhline, axes.axvline):
            line(start - 0.5, color="white", linewidth=2.5)
        middle, out = (start + stop - 1) / 2, -0.5 - (margin + 0.1) / side * count
        bold = max(text, 7)
        room = max(4, int((stop - start) * side / count / (0.0105 * bold)))
        fitting = set_text(short(name, room))
        options: dict[str, Any] = {"fontsize": bold, "fontweight": "bold", "color": INK}
        axes.text(middle, count - 1 - out, fitting, ha="center", va="center", **options)
        axes.text(out, middle, fitting, ha="center", va="center", rotation=90, **options)
    bar = figure.add_axes((left + (side + 0.18) / width, bottom, 0.16 / width, side / height))
    ramp = np.linspace(scale.high, scale.low, 256)[:, None]
    bar.imshow(scale.colors(ramp), aspect="auto", extent=(0, 1, scale.low, scale.high))
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.spines[:].set_visible(True)
    bar.tick_params(labelsize=8)
    top = height - 0.1
    figure.text(0.1 / width, top / height, title, fontsize=11, fontweight="bold", va="top",
                color=INK)  # fmt: skip
    about = short(subject(result), int((width - 0.2) / 0.058))
    for row, words in enumerate((about, scale.note)):
        figure.text(0.1 / width, (top - 0.24 - 0.15 * row) / height, set_text(words), va="top",
                    fontsize=7.5, color=SOFT_INK)  # fmt: skip
    return figure


def similarity_html(result: Similarity) -> str:
    """Return heatmaps and notes as HTML for notebooks; data is escaped."""
    pictures = (
        png_image(encode_plot(heatmap(result, measure), "png", dpi=100))
        for measure in result.figures
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    return f"{''.join(pictures)}<p>{escape(subject(result))}</p><ul>{notes}</ul>"


def set_text(text: str) -> str:
    """Return a text as matplotlib sets it on one line, without formulas."""
    return one_line(text).replace("$", r"\$")


def in_cell(value: float) -> str:
    """Return a figure with two digits after the point."""
    return "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")


def write_in_cells(
    axes: Axes, colors: Array, values: Array, text: Callable[[float], str], size: float
) -> None:
    """Write values `(row, column)` on their cells, in a colour that is readable there."""
    inks = ink_on(colors)
    for (row, column), value in np.ndenumerate(values):
        color = INK if inks[row, column] else "white"
        axes.text(column, row, text(value), ha="center", va="center", fontsize=size, color=color)


def ink_on(colors: Array) -> Array:
    """Return whether text on colours `(…, rgb)` is dark, not light."""
    return np.asarray(colors @ np.array([0.299, 0.587, 0.114]) > 0.55)


@default_style()
def label_curves(result: Similarity) -> Figure:
    """Return label separability by depth, one line per archive."""
    labels = result.labels
    assert labels is not None
    blocks = blocks_of(result)
    longest = max(stop - start for _, start, stop in blocks)
    single = len(blocks) == 1
    width = float(np.clip(0.32 * longest + 2.4, 4.2, 9)) if single else 5.2
    figure = Figure(figsize=(2 * width, 4.2), layout="constrained")
    accuracy, cka = figure.subplots(1, 2)
    for number, (name, start, stop) in enumerate(blocks):
        part, color = slice(start, stop), colormaps["tab10"](number % 10)
        touching = [other for other, first, last in blocks[:number]
                if all(np.array_equal(of[first:last], of[part], equal_nan=True)
                       for of in (labels.accuracy, labels.cka))]  # fmt: skip
        depth: Array = np.arange(stop - start)
        if not single:
            depth = depth / max(1, stop - start - 1)
        label = set_text(short(name, 48) + (f" (= {touching[0]})" if touching else ""))
        line: dict[str, Any] = {
            "marker": _MARKERS[number % len(_MARKERS)], "markersize": 4, "color": color,
            "linestyle": _DASHES[number % len(_DASHES)], "linewidth": max(1.2, 2.4 - 0.4 * number),
            "label": None if single else label,
        }  # fmt: skip
        accuracy.plot(depth, labels.accuracy[part], **line)
        cka.plot(depth, labels.cka[part], **line)
        cka.fill_between(depth, labels.low[part], labels.high[part], color=color, alpha=0.15)
    accuracy.axhline(labels.chance, color=SOFT_INK, linestyle=":", label="most frequent label")
    accuracy.set_title(f"nearest class mean, {labels.labels} labels", fontsize=10, loc="left")
    accuracy.set(ylabel="leave-one-out accuracy", ylim=(0, 1.03))
    cka.axhline(0, color=SOFT_INK, linestyle=":")
    cka.set_title("CKA with the labels (band: 95 % interval)", fontsize=10, loc="left")
    cka.set(ylabel="debiased linear CKA")
    names = [set_text(short(layer.alias)) for layer in result.layers]
    for axes in (accuracy, cka):
        if single:
            axes.set_xticks(
                range(len(names)), names, rotation=90, fontsize=8 if longest < 30 else 6
            )
        else:
            axes.set_xlabel("depth, from the first layer (0) to the last (1)")
    lines, texts = accuracy.get_legend_handles_labels()
    columns = max(1, int(2 * width / (0.6 + 0.07 * max(map(len, texts)))))
    figure.legend(lines, texts, loc="outside lower left", ncols=columns, frameon=False, fontsize=8)
    gaps = " · gaps: undefined" if np.isnan(labels.cka).any() else ""
    figure.suptitle(set_text(subject(result) + gaps), fontsize=8, color=SOFT_INK, x=0.01, ha="left")
    return figure


def colors_as_text(colors: Array) -> Sequence[Sequence[str]]:
    """Return colours `(…, …, rgb)` as HTML writes them."""
    return [[f"#{r:02x}{g:02x}{b:02x}" for r, g, b in row] for row in (colors * 255).astype(int)]
