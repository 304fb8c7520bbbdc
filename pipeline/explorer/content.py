"""The pictures and data of the pages, each as a function of an archive and the query of its URL."""

import io
import json
from collections.abc import Callable

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.atomic_files import as_csv
from pipeline.explorer import drawings, units
from pipeline.explorer.collection import ArchiveView
from pipeline.explorer.dataset_map import DatasetMap, dataset_map
from pipeline.explorer.drawings import layer_and_channel, sample_and_layer, values_at
from pipeline.explorer.query_parameters import QueryParameters
from pipeline.gallery.pages import label_of
from pipeline.rendering.attention_maps import attention_maps
from pipeline.rendering.drawing.picture_formats import Drawing
from pipeline.rendering.views import layer_view

PICTURES: dict[str, Callable[[ArchiveView, QueryParameters], Drawing]] = {
    "strip": drawings.strip,
    "overview": drawings.layer_overview,
    "mean": drawings.mean_map,
    "maps": lambda archive_view, query: drawings.maps(
        archive_view, *sample_and_layer(archive_view, query), query
    )[0],
    "driven": drawings.driven,
    "distribution": drawings.distribution,
    "vector": drawings.vector,
    "crop": drawings.crop,
    "photo": drawings.photo,
    "attention": drawings.attention,
    "map": drawings.scatter,
}


def _attention(archive_view: ArchiveView, query: QueryParameters) -> Array:
    sample, layer, attends_from = drawings.attention_query(archive_view, query)
    view = layer_view(layer, sample.index)
    return (attention_maps(view, attends_from) or view).maps


def _map(archive_view: ArchiveView, query: QueryParameters) -> DatasetMap:
    return dataset_map(archive_view, archive_view.layer(query.text("layer")))


def _npy(values: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _activation(archive_view: ArchiveView, query: QueryParameters) -> Array:
    sample, layer = sample_and_layer(archive_view, query)
    return layer[sample.index]


def _unit_table(archive_view: ArchiveView, query: QueryParameters) -> bytes:
    layer, channel = layer_and_channel(archive_view, query)
    columns = [
        archive_view.column(layer, f"sample_{by}", channel).tolist() for by in ("max", "mean")
    ]
    rows = ((i, sample.id, label_of(sample), largest, mean) for i, (sample, largest, mean)
            in enumerate(zip(archive_view.samples, *columns, strict=True)))  # fmt: skip
    return as_csv([["row", "id", "label", "max", "mean"], *rows])


def _statistics(archive_view: ArchiveView, query: QueryParameters) -> bytes:
    figures = archive_view.statistics(archive_view.layer(query.text("layer")))
    columns = zip(*(values.tolist() for values in figures.values()), strict=True)
    return as_csv([["channel", *figures], *((i, *row) for i, row in enumerate(columns))])


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
        (row, archive_view.samples[row].id, label_of(archive_view.samples[row]), *scores)
        for row, scores in zip(dataset.rows.tolist(), dataset.scores.tolist(), strict=True)
    )
    return as_csv([["row", "id", "label", "first", "second"], *rows])


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
    ("vector", "npy"): lambda archive_view, query: _npy(values_at(archive_view, query)),
}
