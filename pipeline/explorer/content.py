"""The pictures and data of the pages, each as a function of an archive and the query of its URL."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.explorer import drawings, units
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.explorer.dataset_map import DatasetMap, dataset_map
from pipeline.explorer.positions import position_grid, vector_at
from pipeline.explorer.query_parameters import QueryParameters
from pipeline.gallery.pages import label_of
from pipeline.rendering.attention_maps import Query, attention_maps
from pipeline.rendering.drawing.tile_layout import TileLayout
from pipeline.rendering.views import layer_view


def sample_and_layer(
    archive_view: ArchiveView, query: QueryParameters
) -> tuple[StoredSample, StoredLayer]:
    """Return the sample and the layer that a query names."""
    return archive_view.sample(query.text("sample")), archive_view.layer(query.text("layer"))


def _unit(archive_view: ArchiveView, query: QueryParameters) -> tuple[StoredLayer, int]:
    layer = archive_view.layer(query.text("layer"))
    return layer, query.whole("channel", 0, 0, layer.entry.channels - 1)


def position(query: QueryParameters) -> tuple[int, int]:
    """Return the row and column of a query."""
    return query.whole("y", 0, 0, 10**5), query.whole("x", 0, 0, 10**5)


def _driven(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    layer, channel = _unit(archive_view, query)
    most = query.choice("end", ("most", "least")) == "most"
    by = query.choice("by", ("max", "mean"))
    count = query.whole("samples", 8, 1, 36)
    samples = units.driven(archive_view, layer, channel, by, count, most=most)
    return drawings.driven(archive_view, layer, channel, samples, query)


def _distribution(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    layer, channel = _unit(archive_view, query)
    by = query.choice("by", ("max", "mean"))
    name = f"{by} of the map" if not layer.entry.vector else "value"
    return drawings.distribution(archive_view.column(layer, f"sample_{by}", channel), name)


def _values_at(archive_view: ArchiveView, query: QueryParameters) -> Array:
    sample, layer = sample_and_layer(archive_view, query)
    return vector_at(layer_view(layer, sample.index), *position(query))


def _crop(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    sample, layer = sample_and_layer(archive_view, query)
    grid = position_grid(layer.entry)
    if not grid:
        raise NotFound(f"{layer.alias} has no spatial positions")
    y, x = query.whole("y", 0, 0, grid[0] - 1), query.whole("x", 0, 0, grid[1] - 1)
    return drawings.crop(archive_view, sample.index, y, x, grid)


def _attends_from(query: QueryParameters) -> Query:
    return position(query) if query.text("y") else "class"


def _attention(archive_view: ArchiveView, query: QueryParameters) -> Array:
    sample, layer = sample_and_layer(archive_view, query)
    drawings.check_attention(layer, _attends_from(query))
    view = layer_view(layer, sample.index)
    return (attention_maps(view, _attends_from(query)) or view).maps


PICTURES: dict[str, Callable[[ArchiveView, QueryParameters], TileLayout]] = {
    "strip": lambda archive_view, query: drawings.strip(
        archive_view, archive_view.sample(query.text("sample"))
    ),
    "overview": lambda archive_view, query: drawings.layer_overview(
        archive_view, *sample_and_layer(archive_view, query), query
    ),
    "mean": lambda archive_view, query: drawings.mean_map(
        archive_view, *sample_and_layer(archive_view, query), query.whole("side", 448, 16, 1024)
    ),
    "maps": lambda archive_view, query: drawings.maps(
        archive_view, *sample_and_layer(archive_view, query), query
    )[0],
    "driven": _driven,
    "distribution": _distribution,
    "vector": lambda archive_view, query: drawings.vector(_values_at(archive_view, query)),
    "crop": _crop,
    "photo": lambda archive_view, query: drawings.photo(
        archive_view, archive_view.sample(query.text("sample")), query.whole("side", 0, 0, 1024)
    ),
    "attention": lambda archive_view, query: drawings.attention(
        archive_view, *sample_and_layer(archive_view, query), _attends_from(query)
    ),
    "map": lambda archive_view, query: drawings.scatter(_map(archive_view, query)),
}


def _map(archive_view: ArchiveView, query: QueryParameters) -> DatasetMap:
    return dataset_map(archive_view, archive_view.layer(query.text("layer")))


def _npy(values: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _activation(archive_view: ArchiveView, query: QueryParameters) -> Array:
    sample, layer = sample_and_layer(archive_view, query)
    return layer[sample.index]


def _csv(head: list[str], rows: Any) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def _unit_table(archive_view: ArchiveView, query: QueryParameters) -> bytes:
    layer, channel = _unit(archive_view, query)
    columns = [
        archive_view.column(layer, f"sample_{by}", channel).tolist() for by in ("max", "mean")
    ]
    rows = ((i, sample.id, label_of(sample), largest, mean) for i, (sample, largest, mean)
            in enumerate(zip(archive_view.samples, *columns, strict=True)))  # fmt: skip
    return _csv(["row", "id", "label", "max", "mean"], rows)


def _statistics(archive_view: ArchiveView, query: QueryParameters) -> bytes:
    figures = archive_view.statistics(archive_view.layer(query.text("layer")))
    columns = zip(*(values.tolist() for values in figures.values()), strict=True)
    return _csv(["channel", *figures], ((i, *row) for i, row in enumerate(columns)))


def _points(archive_view: ArchiveView, query: QueryParameters) -> bytes:
    dataset = _map(archive_view, query)
    labels = {label: number for number, label in enumerate(archive_view.labels)}
    rows = dataset.rows.tolist()
    content = {
        "x": [float(f"{value:.5g}") for value in dataset.scores[:, 0].tolist()],
        "y": [float(f"{value:.5g}") for value in dataset.scores[:, 1].tolist()],
        "label": [labels.get(label_of(archive_view.samples[row]), -1) for row in rows],
        "labels": archive_view.labels, "stem": [archive_view.stem(row) for row in rows],
        "id": [archive_view.samples[row].id for row in rows],
        "explained": dataset.explained.tolist(), "fitted_to": dataset.fitted_to,
    }  # fmt: skip
    return json.dumps(content, separators=(",", ":")).encode()


def _points_table(archive_view: ArchiveView, query: QueryParameters) -> bytes:
    dataset = _map(archive_view, query)
    rows = (
        (
            row,
            archive_view.samples[row].id,
            label_of(archive_view.samples[row]),
            *scores,
        )
        for row, scores in zip(dataset.rows.tolist(), dataset.scores.tolist(), strict=True)
    )
    return _csv(["row", "id", "label", "first", "second"], rows)


DATA: dict[tuple[str, str], Callable[[ArchiveView, QueryParameters], bytes]] = {
    ("activation", "npy"): lambda archive_view, query: _npy(_activation(archive_view, query)),
    ("unit", "csv"): _unit_table,
    ("statistics", "csv"): _statistics,
    ("correlations", "npy"): lambda archive_view, query: _npy(
        units.correlations(archive_view, archive_view.layer(query.text("layer")))
    ),
    ("map", "json"): _points,
    ("map", "csv"): _points_table,
    ("attention", "npy"): lambda archive_view, query: _npy(_attention(archive_view, query)),
    ("vector", "npy"): lambda archive_view, query: _npy(_values_at(archive_view, query)),
}
