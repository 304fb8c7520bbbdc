"""Histogram: a layer's value distribution over the dataset, with dead and saturated channels.

One figure per layer, from one pass over the archive.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from pipeline.archive.format.statistics import channel_kinds
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.configured import configured
from pipeline.common.errors import plural
from pipeline.common.progress import Progress
from pipeline.rendering.drawing.colormaps import limits
from pipeline.rendering.drawing.picture_formats import Plot, default_style
from pipeline.rendering.renderer import Picture, Renderer

_TOP_SHARE = 0.01
_SATURATED = 0.5
DARK, _LIGHT = "#3b528b", "#b5c5e3"


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A layer's value distribution over the dataset.

    Attributes:
        edges, counts: histogram of the finite values without prefix tokens, `(bin + 1,)` and
            `(bin,)`.
        dead, constant, always_on: see `channel_kinds`.
        saturated: channels with more than half of their values in the top 1 % of their range.
        sparsity: share of exact zeros, 0..1.
        nonfinite: number of NaN and infinite values.
    """

    edges: Array
    counts: Array
    dead: Array
    constant: Array
    always_on: Array
    saturated: Array
    sparsity: float
    nonfinite: int


@configured
class Histogram(Renderer):
    """The distribution of every layer.

    Attributes:
        bins: number of histogram bins.
        dpi: pixels per inch; the picture is 9 inches wide.
    """

    bins: Annotated[int, Field(ge=2, le=100_000)] = 100
    dpi: Annotated[int, Field(ge=40, le=1200)] = 110

    def draw_archive(self, archive: Archive) -> Iterator[Picture]:
        layers = list(archive.layers.values())
        rows = [sample.index for sample in archive.samples if not sample.error]
        total = len(rows) * len(layers)
        with Progress("histogram", total, unit="activations") as progress:
            for layer in layers:
                values = distribution(layer, rows, self.bins, progress)
                drawing = self._plot(layer, values, archive.manifest.model_title, len(rows))
                title = f"distribution of {layer.alias}"
                yield Picture(layer=layer.name, title=title, drawing=drawing)

    @default_style(font_size=8)
    def _plot(self, layer: StoredLayer, statistics: Distribution, model: str, samples: int) -> Plot:
        from matplotlib.figure import Figure  # slow import
        from matplotlib.ticker import EngFormatter

        figure = Figure(figsize=(9, 3.6), dpi=self.dpi)
        if self.titles in ("all", "headline"):
            title = f"{layer.alias} · {model} · {plural(samples, 'sample')}"
            note = (
                f"{plural(layer.entry.channels, 'channel')}: {len(statistics.dead)} dead, "
                f"{len(statistics.constant)} constant, {len(statistics.always_on)} always on, "
                f"{len(statistics.saturated)} saturated · "
                f"{statistics.sparsity:.1%} zeros · {statistics.nonfinite} not finite"
            )
            figure.text(0.012, 0.94, title, fontsize=10.5, fontweight="bold", parse_math=False)
            figure.text(0.012, 0.885, note, color="dimgray")
        values = figure.add_axes((0.057, 0.12, 0.5, 0.68))
        # the outline shows bins narrower than a pixel
        values.stairs(statistics.counts, statistics.edges, baseline=0.7, fill=True, color=DARK,
                      linewidth=72 / self.dpi, antialiased=False)  # fmt: skip
        values.set(yscale="log", ylim=(0.7, 1.5 * max(1, statistics.counts.max())), xlabel="value")
        values.minorticks_off()  # drawing them would take half of the time
        values.yaxis.set_major_formatter(EngFormatter(sep=""))
        values.set_title("how many values", loc="left")
        values.margins(x=0)
        figures = layer.statistics
        order = np.argsort(np.nan_to_num(figures["mean"], nan=-np.inf), kind="stable")
        order, edges = np.append(order, order[-1]), np.arange(len(order) + 1)
        mean, std = figures["mean"][order], figures["std"][order]
        channels = figure.add_axes((0.62, 0.12, 0.36, 0.68))
        channels.fill_between(edges, mean - std, mean + std, step="post", color=_LIGHT, linewidth=0)
        channels.step(edges, mean, where="post", color=DARK, linewidth=1)
        channels.set_title("mean (dark) ± standard deviation", loc="left")
        channels.set_xlabel("channels, by their mean")
        channels.locator_params(axis="x", nbins=6, integer=True)
        channels.margins(x=0)
        return Plot(figure)


def bin_edges(low: float, high: float, bins: int) -> Array:
    """Return the edges of equal bins, `(bin + 1,)`; the first bin holds all of an empty range."""
    return np.linspace(low, high if high > low else low + max(1, abs(low) / 1000), bins + 1)


def distribution(
    layer: StoredLayer, rows: list[int], bins: int, progress: Progress | None = None
) -> Distribution:
    """Read a layer's rows once and return their distribution in `bins` equal bins over the range of
    its statistics.
    """
    figures = layer.statistics
    low, high = figures["min"], figures["max"]
    finite = np.isfinite(low) & np.isfinite(high)
    start, stop = limits(np.stack([low, high])[:, finite])
    edges = bin_edges(start, stop, bins)
    counts = np.zeros(bins, np.int64)
    shape = [1] * len(layer.entry.axes)
    axis = layer.entry.channel_axis - 1
    shape[axis] = -1
    top = np.where(finite, high - _TOP_SHARE * (high - low), np.inf).reshape(shape)
    other_axes = tuple(i for i in range(len(shape)) if i != axis)
    tokens = slice(layer.entry.prefix_positions, None)
    positions = tuple(tokens if axis == "token" else slice(None) for axis in layer.entry.axes)
    in_top = np.zeros(layer.entry.channels, np.int64)
    for row in rows:
        values = layer[row][positions].astype(np.float64)
        # a short type may round values beyond the range, which is that of the exact ones
        counts += np.histogram(np.clip(values[np.isfinite(values)], start, stop), edges)[0]
        in_top += (np.isfinite(values) & (values >= top)).sum(axis=other_axes)
        if progress:
            progress.advance(1)
    kinds = {name: np.flatnonzero(mask) for name, mask in channel_kinds(figures).items()}
    count = figures["count"]
    share = np.divide(in_top, count, out=np.zeros(len(count)), where=count > 0)
    return Distribution(
        edges=edges,
        counts=counts,
        **kinds,
        saturated=np.flatnonzero((low < high) & (share > _SATURATED)),
        sparsity=float(np.nan_to_num(figures["zero_fraction"]).mean()),
        nonfinite=int(figures["nonfinite_count"].sum()),
    )
