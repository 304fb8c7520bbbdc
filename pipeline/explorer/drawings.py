"""Pictures of the pages, drawn by the renderers of the gallery from the query of a URL."""

from dataclasses import replace

import numpy as np

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.common.errors import plural
from pipeline.common.progress import number
from pipeline.explorer import units
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.explorer.dataset_map import dataset_map
from pipeline.explorer.positions import position_grid, vector_at
from pipeline.explorer.query_parameters import QueryParameters
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


def sample_and_layer(
    archive_view: ArchiveView, query: QueryParameters
) -> tuple[StoredSample, StoredLayer]:
    """Return the sample and the layer that a query names; raise NotFound for a skipped sample."""
    sample = archive_view.sample(query.text("sample"))
    require_stored(sample)
    return sample, archive_view.layer(query.text("layer"))


def require_stored(sample: StoredSample) -> None:
    """Raise NotFound for a skipped sample."""
    if sample.error:
        raise NotFound(f"{sample.id} was skipped: {sample.error}")


def layer_and_channel(archive_view: ArchiveView, query: QueryParameters) -> tuple[StoredLayer, int]:
    """Return the layer and the channel that a query names."""
    layer = archive_view.layer(query.text("layer"))
    return layer, query.whole("channel", 0, 0, layer.entry.channels - 1)


def position(query: QueryParameters) -> tuple[int, int]:
    """Return the row and column of a query."""
    return query.whole("y", 0, 0, 10**5), query.whole("x", 0, 0, 10**5)


def values_at(archive_view: ArchiveView, query: QueryParameters) -> Array:
    """Return the values of all channels at the position of a query, `(channel,)`."""
    sample, layer = sample_and_layer(archive_view, query)
    return vector_at(layer_view(layer, sample.index), *position(query))


def strip(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    """Return the input and the mean map of every layer in a row."""
    sample = archive_view.sample(query.text("sample"))
    view = archive_view.view(sample, list(archive_view.layers.values()))
    return Thumbnails().row(view)


def layer_overview(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    """Return an overview of a layer: mean map, PCA of the sample, PCA of the dataset; of attention:
    the heads.
    """
    sample, layer = sample_and_layer(archive_view, query)
    if is_attention(layer.entry) and not misfit(layer.entry):
        return attention(archive_view, query)
    view = archive_view.view(sample, [layer])
    colormap = query.choice("colormap", COLORMAPS)
    mean = MeanMap(tile_size=224, colormap=colormap).tile(view.layers[0], view)
    tiles = [input_tile(view, 224)] if view.has_input else []
    tiles.append(replace(mean, title="mean map"))
    if not view.layers[0].vector:
        picture = PCA(tile_size=224).tile(view.layers[0])
        tiles.append(replace(picture, title="PCA of this sample"))
        tiles.append(_dataset_pca(archive_view, layer, view.layers[0]))
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


def attention(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    """Return where every head attends to: from a position, by default from the class token."""
    sample, layer, attends_from = attention_query(archive_view, query)
    view = archive_view.view(sample, [layer])
    return AttentionMaps(query=attends_from, titles="maps").draw_layer(view.layers[0], view)


def attention_query(
    archive_view: ArchiveView, query: QueryParameters
) -> tuple[StoredSample, StoredLayer, Query]:
    """Return sample, layer and attention query; raise NotFound if there is nothing to draw."""
    sample, layer = sample_and_layer(archive_view, query)
    attends_from: Query = position(query) if query.text("y") else "class"
    if not is_attention(layer.entry):
        raise NotFound(f"{layer.alias} holds no attention weights")
    if reason := misfit(layer.entry, attends_from):
        raise NotFound(f"{layer.alias}: {reason}")
    return sample, layer, attends_from


def photo(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    """Return the input, its longer side `side` pixels; 0 keeps its size."""
    image = input_image(archive_view.archive, archive_view.sample(query.text("sample")).index)
    side = query.whole("side", 0, 0, 1024)
    return TileLayout(paper=fit(image, side) if side else image)


def mean_map(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    """Return a layer's mean map, its longer side `side` pixels; vectors as bars."""
    sample, layer = sample_and_layer(archive_view, query)
    view = archive_view.view(sample, [layer])
    tile = MeanMap(tile_size=query.whole("side", 448, 16, 1024), colormap="auto").tile(
        view.layers[0], view
    )
    return TileLayout(paper=tile.rgb)


def maps(
    archive_view: ArchiveView, sample: StoredSample, layer: StoredLayer, query: QueryParameters
) -> tuple[TileLayout, list[tuple[int, int, int, int, int]]]:
    """Return a page of maps and the box of each: channel, left, top, right, bottom."""
    view = archive_view.view(sample, [layer])
    limit = query.whole("maps", 64, 1, max(MAPS))
    page = query.whole("page", 1, 1, 10**6)
    order = query.choice("order", ORDERS)
    by: Select = "first" if order == "channel" else order  # type: ignore[assignment]
    channels = rank_channels(view.layers[0], by, "sample")[(page - 1) * limit : page * limit]
    if not len(channels):
        raise NotFound(f"no page {page}")
    grid = Grid(
        channels=channels.tolist(), columns=8, tile_size=CELL,
        colormap=query.choice("colormap", COLORMAPS),
        normalize=query.choice("normalize", NORMALIZE),  # type: ignore[arg-type]
        titles="maps",
    )  # fmt: skip
    drawing = grid.draw_layer(view.layers[0], view)
    if view.layers[0].vector:
        return drawing, []
    boxes = zip(channels, drawing.boxes, strict=True)
    return drawing, [(int(channel), *box) for channel, box in boxes]


def driven(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    """Return samples in a row, each overlaid with a channel's map; see `driven_boxes`.

    All maps share the channel's range over the dataset, except attention, which is too spiky.
    """
    layer, channel = layer_and_channel(archive_view, query)
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


def distribution(archive_view: ArchiveView, query: QueryParameters) -> Plot:
    """Return a histogram of a channel's values over samples."""
    from matplotlib.figure import Figure  # slow import

    layer, channel = layer_and_channel(archive_view, query)
    by = query.choice("by", ("max", "mean"))
    name = f"{by} of the map" if not layer.entry.vector else "value"
    values = archive_view.column(layer, f"sample_{by}", channel)
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


def vector(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    """Return the values of all channels at a position as bars."""
    values = values_at(archive_view, query)
    low, high = limits(values)
    tile = Tile(
        pixels=bars(values, (120, 640), (low, high)),
        palette=palette("viridis"),
        title=plural(len(values), "channel"),
        note=f"from zero · {number(low)} … {number(high)}",
    )
    return compose([tile], 1)


def crop(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    """Return the input around a position, with the position's patch framed."""
    sample, layer = sample_and_layer(archive_view, query)
    grid = position_grid(layer.entry)
    if not grid:
        raise NotFound(f"{layer.alias} has no spatial positions")
    place = query.whole("y", 0, 0, grid[0] - 1), query.whole("x", 0, 0, grid[1] - 1)
    image = input_image(archive_view.archive, sample.index)
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


def scatter(archive_view: ArchiveView, query: QueryParameters) -> Plot:
    """Return the dataset map as a scatter plot."""
    from matplotlib.figure import Figure  # slow import

    dataset = dataset_map(archive_view, archive_view.layer(query.text("layer")))
    first, second = dataset.explained
    with default_style(font_size=8):
        figure = Figure(figsize=(7.6, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(*dataset.scores.T, "s", markersize=2, color=DARK, rasterized=True)
        axes.set(xlabel=f"first component ({first:.0%} of the variance)",
                 ylabel=f"second component ({second:.0%})")  # fmt: skip
    return Plot(figure)
