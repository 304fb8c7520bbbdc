"""Pictures of the pages, drawn by the renderers of the gallery from the query of a URL."""

from dataclasses import replace

import numpy as np

from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.errors import plural
from pipeline.common.progress import number
from pipeline.explorer import units
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.explorer.dataset_map import dataset_map
from pipeline.explorer.positions import position_grid, vector_at
from pipeline.explorer.site import Resource
from pipeline.renderers.attention import AttentionMaps
from pipeline.renderers.grid import Grid
from pipeline.renderers.histogram import DARK, bin_edges
from pipeline.renderers.mean_map import MeanMap
from pipeline.renderers.pca import PCA, painted
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.renderers.top_samples import TopSamples
from pipeline.rendering.attention_maps import Query, is_attention, misfit
from pipeline.rendering.channel_ranking import Select, rank_channels
from pipeline.rendering.drawing.bars import bars
from pipeline.rendering.drawing.colormaps import limits, palette
from pipeline.rendering.drawing.picture_formats import Plot, default_style
from pipeline.rendering.drawing.text_and_resize import fit, scaled_size
from pipeline.rendering.drawing.tile_layout import GAP, MARGIN, Tile, TileLayout, compose
from pipeline.rendering.projection import DatasetProjection, fit_layer
from pipeline.rendering.views import LayerView, input_image, input_tile, layer_view

COLORMAPS = ("auto", "viridis", "magma", "inferno", "cividis", "gray", "RdBu_r", "turbo")
NORMALIZE = ("map", "layer", "dataset")
ORDERS = ("channel", "variance", "mean", "max")
MAPS = (16, 32, 64, 128)
CELL = 112
TILE = 144
FITTED_TO = 200
_FITTED_BYTES = 64 * 2**20
"""Maximum number and bytes of evenly spaced samples that dataset-wide colours are fitted to."""


def values_at(at: Resource) -> Array:
    """Return the values of all channels at a position, `(channel,)`."""
    return vector_at(layer_view(at.layer, at.stored_sample.index), *at.position())


def strip(at: Resource) -> TileLayout:
    """Return the input and the mean map of every layer in a row."""
    view = at.archive_view.view(at.sample, list(at.archive_view.layers.values()))
    return Thumbnails().row(view)


def layer_overview(at: Resource) -> TileLayout:
    """Return an overview of a layer: mean map, PCA of the sample, PCA of the dataset; of attention:
    the heads.
    """
    if is_attention(at.layer.entry) and not misfit(at.layer.entry):
        return attention(at)
    view, layer = at.view()
    colormap = at.query.choice("colormap", COLORMAPS)
    mean = MeanMap(tile_size=224, colormap=colormap).tile(layer, view)
    tiles = [input_tile(view, 224)] if view.has_input else []
    tiles.append(replace(mean, title="mean map"))
    if not layer.vector:
        picture = PCA(tile_size=224).tile(layer)
        tiles.append(replace(picture, title="PCA of this sample"))
        tiles.append(_dataset_pca(at.archive_view, at.layer, layer))
    return compose(tiles, 4)


def _dataset_pca(archive_view: ArchiveView, layer: StoredLayer, view: LayerView) -> Tile:
    rows = archive_view.spread(
        int(np.clip(_FITTED_BYTES // layer.entry.sample_bytes, 8, FITTED_TO))
    )
    fitted: DatasetProjection = archive_view.results.get(
        ("pca", layer.name), lambda: fit_layer(layer, rows.tolist(), 3, 0, 0)
    )
    rgb = painted(view.maps, fitted, fitted.low, fitted.high)
    shares = " + ".join(f"{share:.0%}" for share in fitted.explained)
    return Tile(
        pixels=fit(rgb, 224),
        title=f"PCA of {plural(len(rows), 'sample')}",
        note=f"same colours · {shares}",
    )


def attention(at: Resource) -> TileLayout:
    """Return where every head attends to: from a position, by default from the class token."""
    view, layer = at.view()
    return AttentionMaps(query=attention_query(at), titles="maps").draw_layer(layer, view)


def attention_query(at: Resource) -> Query:
    """Return the attention query; raise NotFound if there is nothing to draw."""
    attends_from: Query = at.position() if at.query.text("y") else "class"
    if not is_attention(at.layer.entry):
        raise NotFound(f"{at.layer.alias} holds no attention weights")
    if reason := misfit(at.layer.entry, attends_from):
        raise NotFound(f"{at.layer.alias}: {reason}")
    return attends_from


def photo(at: Resource) -> TileLayout:
    """Return the input, its longer side `side` pixels; 0 keeps its size."""
    image = input_image(at.archive_view.archive, at.sample.index)
    side = at.query.whole("side", 0, 0, 1024)
    return TileLayout(paper=fit(image, side) if side else image)


def mean_map(at: Resource) -> TileLayout:
    """Return a layer's mean map, its longer side `side` pixels; vectors as bars."""
    view, layer = at.view()
    means = MeanMap(tile_size=at.query.whole("side", 448, 16, 1024), colormap="auto")
    return TileLayout(paper=means.tile(layer, view).rgb)


def maps(at: Resource) -> tuple[TileLayout, list[tuple[int, int, int, int, int]]]:
    """Return a page of maps and the box of each: channel, left, top, right, bottom."""
    view, layer = at.view()
    limit = at.query.whole("maps", 64, 1, max(MAPS))
    page = at.query.whole("page", 1, 1, 10**6)
    order = at.query.choice("order", ORDERS)
    by: Select = "first" if order == "channel" else order  # type: ignore[assignment]
    channels = rank_channels(layer, by, "sample")[(page - 1) * limit : page * limit]
    if not len(channels):
        raise NotFound(f"no page {page}")
    grid = Grid(
        channels=channels.tolist(), columns=8, tile_size=CELL,
        colormap=at.query.choice("colormap", COLORMAPS),
        normalize=at.query.choice("normalize", NORMALIZE),  # type: ignore[arg-type]
        titles="maps",
    )  # fmt: skip
    drawing = grid.draw_layer(layer, view)
    if layer.vector:
        return drawing, []
    boxes = zip(channels, drawing.boxes, strict=True)
    return drawing, [(int(channel), *box) for channel, box in boxes]


def driven(at: Resource) -> TileLayout:
    """Return samples in a row, each overlaid with a channel's map; see `driven_boxes`.

    All maps share the channel's range over the dataset, except attention, which is too spiky.
    """
    archive_view, query, layer, channel = at.archive_view, at.query, at.layer, at.channel
    most = query.choice("end", ("most", "least")) == "most"
    by, count = query.choice("by", ("max", "mean")), query.whole("samples", 8, 1, 36)
    samples = units.driven(archive_view, layer, channel, by, count, most=most)
    figures = archive_view.statistics(layer)
    shared: tuple[float, float] | None = None
    if not is_attention(layer.entry):
        shared = (float(figures["min"][channel]), float(figures["max"][channel]))
    crop = 1.0 if query.choice("crop", ("no", "yes")) == "no" else 0.4
    renderer = TopSamples(tile_size=TILE, by=by, crop=crop)  # type: ignore[arg-type]
    tiles = []
    for row, drive in zip(samples.rows.tolist(), samples.drives.tolist(), strict=True):
        view = archive_view.view(archive_view.samples[row], [layer])
        tile = renderer.tile(archive_view.archive, view.layers[0], channel, row, drive, shared)
        tiles.append(replace(tile, title=number(drive)))
    if not tiles:
        return TileLayout(paper=np.full((8, 8, 3), 255, np.uint8))
    return compose(tiles, len(tiles))


def driven_boxes(archive_view: ArchiveView, rows: Array) -> list[tuple[int, ...]]:
    """Return the boxes of samples in `driven`: row in the archive, left, top, right, bottom."""
    height, width = archive_view.archive.manifest.image_shape[1:]
    tall, wide = scaled_size(np.empty((height, width)), TILE)
    lefts = [MARGIN + column * (wide + GAP) for column in range(len(rows))]
    boxes = zip(rows.tolist(), lefts, strict=True)
    return [(row, left, 0, left + wide, tall + 60) for row, left in boxes]


def distribution(at: Resource) -> Plot:
    """Return a histogram of a channel's values over samples."""
    from matplotlib.figure import Figure  # slow import

    by = at.query.choice("by", ("max", "mean"))
    name = f"{by} of the map" if not at.layer.entry.vector else "value"
    values = at.archive_view.column(at.layer, f"sample_{by}", at.channel)
    finite = values[np.isfinite(values)].astype(np.float64)
    edges = bin_edges(*limits(finite), 60)
    with default_style(font_size=8):
        figure = Figure(figsize=(5.2, 2.2), layout="constrained")
        axes = figure.subplots()
        axes.stairs(np.histogram(finite, edges)[0], edges, fill=True, color=DARK)
        axes.set(xlabel=name, ylabel="samples")
        axes.locator_params(axis="y", nbins=5, integer=True)
        axes.margins(x=0)
    return Plot(figure)


def vector(at: Resource) -> TileLayout:
    """Return the values of all channels at a position as bars."""
    values = values_at(at)
    low, high = limits(values)
    tile = Tile(
        pixels=bars(values, (120, 640), (low, high)),
        palette=palette("viridis"),
        title=plural(len(values), "channel"),
        note=f"from zero · {number(low)} … {number(high)}",
    )
    return compose([tile], 1)


def crop(at: Resource) -> TileLayout:
    """Return the input around a position, with the position's patch framed."""
    grid = position_grid(at.layer.entry)
    if not grid:
        raise NotFound(f"{at.layer.alias} has no spatial positions")
    place = at.query.whole("y", 0, 0, grid[0] - 1), at.query.whole("x", 0, 0, grid[1] - 1)
    image = input_image(at.archive_view.archive, at.stored_sample.index)
    size = np.array(image.shape[:2])
    patch, corners = size / grid, np.array([place, np.add(place, 1)])
    side = max(3 * patch.max(), 32)
    start = np.clip((corners[0] + 0.5) * patch - side / 2, 0, np.maximum(0, size - side)).astype(
        int
    )
    stop = start + int(side)
    region = image[start[0] : stop[0], start[1] : stop[1]]
    tile = fit(region, 96).copy()
    edges = np.rint((corners * patch - start) * (96 / max(region.shape[:2])))
    (y0, x0), (y1, x1) = np.clip(edges, 0, np.array(tile.shape[:2]) - 1).astype(int)
    tile[[y0, y1], x0 : x1 + 1] = (255, 60, 60)
    tile[y0 : y1 + 1, [x0, x1]] = (255, 60, 60)
    return TileLayout(paper=tile)


def scatter(at: Resource) -> Plot:
    """Return the dataset map as a scatter plot."""
    from matplotlib.figure import Figure  # slow import

    dataset = dataset_map(at.archive_view, at.layer)
    first, second = dataset.explained
    with default_style(font_size=8):
        figure = Figure(figsize=(7.6, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(*dataset.scores.T, "s", markersize=2, color=DARK, rasterized=True)
        axes.set(xlabel=f"first component ({first:.0%} of the variance)",
                 ylabel=f"second component ({second:.0%})")  # fmt: skip
    return Plot(figure)
