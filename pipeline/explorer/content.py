"""The pictures and data of the pages, each as a function of an archive and the query of its URL."""

import io
import json
from collections.abc import Callable

import numpy as np

from pipeline.common.arrays import Array
from pipeline.common.atomic_files import as_csv
from pipeline.explorer import drawings, units
from pipeline.explorer.dataset_map import dataset_map
from pipeline.explorer.site import Resource
from pipeline.gallery.pages import label_of
from pipeline.rendering.attention_maps import attention_maps
from pipeline.rendering.drawing.picture_formats import Drawing
from pipeline.rendering.views import layer_view

PICTURES: dict[str, Callable[[Resource], Drawing]] = {
    "strip": drawings.strip,
    "overview": drawings.layer_overview,
    "mean": drawings.mean_map,
    "maps": lambda at: drawings.maps(at)[0],
    "driven": drawings.driven,
    "distribution": drawings.distribution,
    "vector": drawings.vector,
    "crop": drawings.crop,
    "photo": drawings.photo,
    "attention": drawings.attention,
    "map": drawings.scatter,
}


def _attention(at: Resource) -> bytes:
    attends_from = drawings.attention_query(at)
    view = layer_view(at.layer, at.stored_sample.index)
    return _npy((attention_maps(view, attends_from) or view).maps)


def _npy(values: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _unit_table(at: Resource) -> bytes:
    columns = [
        at.archive_view.column(at.layer, f"sample_{by}", at.channel).tolist()
        for by in ("max", "mean")
    ]
    rows = ((i, sample.id, label_of(sample), largest, mean) for i, (sample, largest, mean)
            in enumerate(zip(at.archive_view.samples, *columns, strict=True)))  # fmt: skip
    return as_csv([["row", "id", "label", "max", "mean"], *rows])


def _statistics(at: Resource) -> bytes:
    figures = at.archive_view.statistics(at.layer)
    columns = zip(*(values.tolist() for values in figures.values()), strict=True)
    return as_csv([["channel", *figures], *((i, *row) for i, row in enumerate(columns))])


def _points(at: Resource) -> bytes:
    archive_view, dataset = at.archive_view, dataset_map(at.archive_view, at.layer)
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


def _points_table(at: Resource) -> bytes:
    samples, dataset = at.archive_view.samples, dataset_map(at.archive_view, at.layer)
    rows = (
        (row, samples[row].id, label_of(samples[row]), *scores)
        for row, scores in zip(dataset.rows.tolist(), dataset.scores.tolist(), strict=True)
    )
    return as_csv([["row", "id", "label", "first", "second"], *rows])


DATA: dict[tuple[str, str], Callable[[Resource], bytes]] = {
    ("activation", "npy"): lambda at: _npy(at.layer[at.stored_sample.index]),
    ("unit", "csv"): _unit_table,
    ("statistics", "csv"): _statistics,
    ("correlations", "npy"): lambda at: _npy(units.correlations(at.archive_view, at.layer)),
    ("map", "json"): _points,
    ("map", "csv"): _points_table,
    ("attention", "npy"): _attention,
    ("vector", "npy"): lambda at: _npy(drawings.values_at(at)),
}
