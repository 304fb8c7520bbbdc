"""Endpoints for pictures, arrays, tables and the search for nearest positions."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.arrays import Array
from pipeline.explorer import drawings, units
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.explorer.dataset_map import DatasetMap, dataset_map
from pipeline.explorer.positions import Nearest, nearest, position_grid, vector_at
from pipeline.explorer.query_parameters import BadRequest, QueryParameters
from pipeline.explorer.site import Site, error_text, status_of
from pipeline.gallery.pages import label_of
from pipeline.rendering.attention_maps import Query, attention_maps
from pipeline.rendering.drawing.picture_formats import encode, encode_figure
from pipeline.rendering.drawing.text_and_resize import placeholder
from pipeline.rendering.drawing.tile_layout import TileLayout
from pipeline.rendering.options import FigureFormat, PictureFormat
from pipeline.rendering.views import layer_view

NEAREST = 24
_MEDIA = {
    "png": "image/png", "pdf": "application/pdf", "svg": "image/svg+xml",
    "npy": "application/octet-stream", "csv": "text/csv; charset=utf-8",
    "json": "application/json",
}  # fmt: skip


class Endpoints:
    """Endpoints that return pictures and data."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def draw(self, request: Request) -> Response:
        """Return a picture; on an error, a picture of the message."""
        what, kind = request.path_params["what"], request.path_params["kind"]
        key = request.path_params["key"]
        query = QueryParameters(request)
        try:
            if kind not in ("png", "pdf", "svg") or what not in _PICTURES:
                raise NotFound(f"no picture {what}.{kind}")
            archive_view = self._site.collection.archive_view(key)
            parameters = tuple(sorted(request.query_params.items()))
            content = await self._site.executor.drawn(
                (key, what, kind, parameters),
                lambda: _encoded(_PICTURES[what](archive_view, query), kind),
            )
        except Exception as error:  # noqa: BLE001 - every error is a picture
            picture = encode(
                TileLayout(paper=placeholder(error_text(error), 360)), PictureFormat.PNG
            )
            return Response(picture, status_of(error), media_type="image/png")
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": "private, max-age=600"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if kind != "png":
            headers["content-disposition"] = f'inline; filename="{what}.{kind}"'
        return Response(content, media_type=_MEDIA[kind], headers=headers)

    async def data(self, request: Request) -> Response:
        """Return the data of a page."""
        what, kind = request.path_params["what"], request.path_params["kind"]
        query = QueryParameters(request)

        def work() -> bytes:
            if (what, kind) not in _DATA:
                raise NotFound(f"no data {what}.{kind}")
            return _DATA[what, kind](self._site.archive_view(request), query)

        def respond(content: bytes) -> Response:
            headers = {"content-disposition": f'attachment; filename="{what}.{kind}"'}
            return Response(content, 200, headers if kind != "json" else {}, _MEDIA[kind])

        return await self._site.answer(work, respond)

    async def nearest(self, request: Request) -> Response:
        """Stream the nearest positions so far, one line of JSON per block of samples.

        The search ends when the client disconnects.
        """
        query = QueryParameters(request)

        def start_search() -> tuple[ArchiveView, Any]:
            archive_view = self._site.archive_view(request)
            sample, layer = _of(archive_view, query)
            if sample.error or not layer.entry.spatial_shape:
                raise NotFound("this layer or sample has no positions")
            y, x = _position(query)
            vector = vector_at(layer_view(layer, sample.index), y, x)
            if not np.isfinite(vector).all():
                raise BadRequest("the values at this position are not all finite")
            per_sample = query.choice("each", ("sample", "all")) == "sample"
            search = nearest(layer, archive_view.stored, vector, NEAREST, one_each=per_sample,
                             leave_out=(sample.index, y, x))  # fmt: skip
            return archive_view, search

        async def lines(archive_view: ArchiveView, search: Any) -> AsyncIterator[str]:
            try:
                while not await request.is_disconnected():
                    result: Nearest | None = await self._site.executor.do(
                        lambda: next(search, None)
                    )
                    if result is None:
                        return
                    yield json.dumps(_nearest_json(archive_view, result)) + "\n"
            except Exception as error:  # noqa: BLE001 - sent in the stream
                yield json.dumps({"error": error_text(error)}) + "\n"

        return await self._site.answer(
            start_search,
            lambda started: StreamingResponse(lines(*started), media_type="application/x-ndjson"),
        )


def _nearest_json(archive_view: ArchiveView, result: Nearest) -> dict[str, Any]:
    positions = zip(result.rows.tolist(), result.y.tolist(), result.x.tolist(),
                    result.cosine.tolist(), strict=True)  # fmt: skip
    return {
        "done": result.done, "total": result.total,
        "found": [
            {"stem": archive_view.stem(row), "id": archive_view.samples[row].id, "y": y, "x": x,
             "cosine": round(cosine, 6)}
            for row, y, x, cosine in positions
        ],
    }  # fmt: skip


def _encoded(drawing: TileLayout, kind: str) -> bytes:
    if kind == "png":
        return encode(drawing, PictureFormat.PNG)
    return encode_figure(drawing, FigureFormat(kind))


def _of(archive_view: ArchiveView, query: QueryParameters) -> tuple[StoredSample, StoredLayer]:
    return archive_view.sample(query.text("sample")), archive_view.layer(query.text("layer"))


def _unit(archive_view: ArchiveView, query: QueryParameters) -> tuple[StoredLayer, int]:
    layer = archive_view.layer(query.text("layer"))
    return layer, query.whole("channel", 0, 0, layer.entry.channels - 1)


def _position(query: QueryParameters) -> tuple[int, int]:
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
    sample, layer = _of(archive_view, query)
    return vector_at(layer_view(layer, sample.index), *_position(query))


def _crop(archive_view: ArchiveView, query: QueryParameters) -> TileLayout:
    sample, layer = _of(archive_view, query)
    grid = position_grid(layer.entry)
    if not grid:
        raise NotFound(f"{layer.alias} has no spatial positions")
    y, x = query.whole("y", 0, 0, grid[0] - 1), query.whole("x", 0, 0, grid[1] - 1)
    return drawings.crop(archive_view, sample.index, y, x, grid)


def _attends_from(query: QueryParameters) -> Query:
    return _position(query) if query.text("y") else "class"


def _attention(archive_view: ArchiveView, query: QueryParameters) -> Array:
    sample, layer = _of(archive_view, query)
    drawings.check_attention(layer, _attends_from(query))
    view = layer_view(layer, sample.index)
    return (attention_maps(view, _attends_from(query)) or view).maps


_PICTURES: dict[str, Callable[[ArchiveView, QueryParameters], TileLayout]] = {
    "strip": lambda archive_view, query: drawings.strip(
        archive_view, archive_view.sample(query.text("sample"))
    ),
    "overview": lambda archive_view, query: drawings.layer_overview(
        archive_view, *_of(archive_view, query), query
    ),
    "mean": lambda archive_view, query: drawings.mean_map(
        archive_view, *_of(archive_view, query), query.whole("side", 448, 16, 1024)
    ),
    "maps": lambda archive_view, query: drawings.maps(
        archive_view, *_of(archive_view, query), query
    )[0],
    "driven": _driven,
    "distribution": _distribution,
    "vector": lambda archive_view, query: drawings.vector(_values_at(archive_view, query)),
    "crop": _crop,
    "photo": lambda archive_view, query: drawings.photo(
        archive_view, archive_view.sample(query.text("sample")), query.whole("side", 0, 0, 1024)
    ),
    "attention": lambda archive_view, query: drawings.attention(
        archive_view, *_of(archive_view, query), _attends_from(query)
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
    sample, layer = _of(archive_view, query)
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
        (row, archive_view.samples[row].id, label_of(archive_view.samples[row]), *scores)
        for row, scores in zip(dataset.rows.tolist(), dataset.scores.tolist(), strict=True)
    )
    return _csv(["row", "id", "label", "first", "second"], rows)


_DATA: dict[tuple[str, str], Callable[[ArchiveView, QueryParameters], bytes]] = {
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
