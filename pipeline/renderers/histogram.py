"""Histogram: how a layer's values are distributed over the dataset, and which channels are sick.

One figure per layer, from one pass over the archive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from pipeline.archive.reader import Archive
from pipeline.archive.stored_layer import StoredLayer
from pipeline.foundation.configured import configured
from pipeline.foundation.progress import Progress
from pipeline.rendering.plot import Plot
from pipeline.rendering.renderer import Picture, Renderer
from pipeline.rendering.views import Array

_TOP_PART = 0.01
_SATURATED = 0.5


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A layer over the dataset.

    Attributes:
        edges, counts: `(bin + 1,)` and `(bin,)`, of all finite values.
        dead: channels whose finite values are all equal, or that have none.
        always_on: channels that are positive everywhere.
        saturated: channels of which more than half of the values lie in the top 1 % of their range.
        sparsity: share of exact zeros, 0..1.
        nonfinite: how many values are NaN or infinite.
    """

    edges: Array
    counts: Array
    dead: Array
    always_on: Array
    saturated: Array
    sparsity: float
    nonfinite: int


@configured
class Histogram(Renderer):
    """The distribution of every layer.

    Attributes:
        bins: of the histogram.
        dpi: pixels per inch of the figure, which is 9 inches wide.
    """

    of_samples: ClassVar[bool] = False

    bins: Annotated[int, Field(ge=2)] = 100
    dpi: Annotated[int, Field(ge=40)] = 110

    def draw_archive(self, archive: Archive) -> Iterator[Picture]:
        """Return one picture per layer."""
        layers = list(archive.layers.values())
        rows = [sample.index for sample in archive.samples if not sample.error]
        total = len(rows) * len(layers)
        with Progress("histogram", total, unit="activations") as progress:
            for layer in layers:
                found = distribution(layer, rows, self.bins, progress)
                plot = Plot(self._figure(layer, found, archive.manifest.model_name, len(rows)))
                title = f"distribution of {layer.alias}"
                yield Picture(layer=layer.name, title=title, drawing=plot)

    def _figure(self, layer: StoredLayer, found: Distribution, model: str, samples: int) -> Figure:
        figure = Figure(figsize=(9, 3.6), dpi=self.dpi, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        left.stairs(found.counts, found.edges, fill=True, color="#3b528b")
        left.set_yscale("log")
        left.set_ylim(bottom=0.7)
        left.set_xlabel("value")
        left.set_ylabel("values")
        figures = layer.statistics
        order = np.argsort(np.nan_to_num(figures["mean"], nan=-np.inf), kind="stable")
        mean, std = figures["mean"][order], figures["std"][order]
        at = np.arange(len(order))
        right.fill_between(at, mean - std, mean + std, color="#b5c5e3", label="± 1 std")
        right.plot(at, mean, color="#3b528b", label="mean")
        right.set_xlabel("channels, by their mean")
        right.legend(frameon=False, fontsize=8)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
        total = layer.entry.channels
        figure.suptitle(
            f"{layer.alias} · {model} · {samples} samples", fontsize=11, fontweight="bold",
            x=0.01, ha="left",
        )  # fmt: skip
        left.set_title(
            f"{total} channels: {len(found.dead)} dead, {len(found.always_on)} always on, "
            f"{len(found.saturated)} saturated · {found.sparsity:.1%} zeros · "
            f"{found.nonfinite} not finite",
            fontsize=8.5, loc="left", color="#696973",
        )  # fmt: skip
        return figure


def distribution(
    layer: StoredLayer, rows: list[int], bins: int, progress: Progress
) -> Distribution:
    """Read a layer once and return how its values are distributed.

    Args:
        layer: with the statistics that the archive holds, which give the range.
        rows: of the samples to read.
        bins: equal parts of the range from the smallest to the largest value.
        progress: is told of every row.
    """
    figures = layer.statistics
    low, high = figures["min"], figures["max"]
    some = np.isfinite(low) & np.isfinite(high)
    start = float(low[some].min()) if some.any() else 0.0
    stop = float(high[some].max()) if some.any() else 1.0
    edges = np.linspace(start, stop if stop > start else start + 1, bins + 1)
    counts = np.zeros(bins, np.int64)
    shape = [1] * len(layer.entry.axes)
    axis = layer.entry.channel_axis - 1
    shape[axis] = -1
    top = np.where(some, high - _TOP_PART * (high - low), np.inf).reshape(shape)
    others = tuple(i for i in range(len(shape)) if i != axis)
    in_top = np.zeros(layer.entry.channels, np.int64)
    for row in rows:
        values = layer[row].astype(np.float64)
        counts += np.histogram(values[np.isfinite(values)], edges)[0]
        in_top += (np.isfinite(values) & (values >= top)).sum(axis=others)
        progress.advance(1)
    dead = ~some | (low == high)
    count = figures["count"]
    share = np.divide(in_top, count, out=np.zeros(len(count)), where=count > 0)
    everything = count + figures["nonfinite_count"]
    zeros = float((figures["zero_fraction"] * everything)[everything > 0].sum())
    return Distribution(
        edges=edges,
        counts=counts,
        dead=np.flatnonzero(dead),
        always_on=np.flatnonzero(~dead & (low > 0)),
        saturated=np.flatnonzero(~dead & (share > _SATURATED)),
        sparsity=zeros / max(1, int(everything.sum())),
        nonfinite=int(figures["nonfinite_count"].sum()),
    )
