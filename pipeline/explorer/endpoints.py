"""The answers that are no pages: pictures, arrays, tables, and the search for nearest positions."""

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
from pipeline.explorer import figures as drawings
from pipeline.explorer import units
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.explorer.dataset_map import DatasetMap, dataset_map
from pipeline.explorer.positions import Nearest, nearest, vector_at
from pipeline.explorer.query_parameters import Asked, BadRequest
from pipeline.explorer.site import Site, said, status_of
from pipeline.gallery.pages import label_of
from pipeline.rendering.drawing.picture_formats import encode, encode_figure
from pipeline.rendering.drawing.text_and_resize import placeholder
from pipeline.rendering.drawing.tile_layout import TileLayout
from pipeline.rendering.options import FigureFormat, PictureFormat
from pipeline.rendering.views import input_image, layer_view

NEAREST = 24
_MEDIA = {
    "png": "image/png", "pdf": "application/pdf", "svg": "image/svg+xml",
    "npy": "application/octet-stream", "csv": "text/csv; charset=utf-8",
    "json": "application/json",
}  # fmt: skip


class Answers:
    """What draws and tells."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def draw(self, request: Request) -> Response:
        """Answer with a picture; with one that says why where it cannot be drawn."""
        what, kind = request.path_params["what"], request.path_params["kind"]
        shelf_key = request.path_params["key"]
        asked = Asked(request)
        try:
            if kind not in ("png", "pdf", "svg") or what not in _DRAWN:
                raise NotFound(f"no picture {what}.{kind}")
            shelf = self._site.collection.shelf(shelf_key)
            query = tuple(sorted(request.query_params.items()))
            content = await self._site.workshop.drawn(
                (shelf_key, what, kind, query), lambda: _encoded(_DRAWN[what](shelf, asked), kind)
            )
        except Exception as error:  # noqa: BLE001 - every error is a picture
            picture = encode(TileLayout(paper=placeholder(said(error), 360)), PictureFormat.PNG)
            return Response(picture, status_of(error), media_type="image/png")
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": "private, max-age=600"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if kind != "png":
            headers["content-disposition"] = f'inline; filename="{what}.{kind}"'
        return Response(content, media_type=_MEDIA[kind], headers=headers)

    async def data(self, request: Request) -> Response:
        """Answer with the numbers behind a page."""
        what, kind = request.path_params["what"], request.path_params["kind"]
        asked = Asked(request)

        def work() -> bytes:
            if (what, kind) not in _TOLD:
                raise NotFound(f"no data {what}.{kind}")
            return _TOLD[what, kind](self._site.shelf(request), asked)

        def respond(content: bytes) -> Response:
            headers = {"content-disposition": f'attachment; filename="{what}.{kind}"'}
            return Response(content, 200, headers if kind != "json" else {}, _MEDIA[kind])

        return await self._site.answer(work, respond)

    async def nearest(self, request: Request) -> Response:
        """Stream the nearest positions so far, a line of JSON after each part of the dataset.

        The search ends when the browser goes away.
        """
        asked = Asked(request)

        def begin() -> tuple[ArchiveView, Any]:
            shelf = self._site.shelf(request)
            sample, layer = _of(shelf, asked)
            if sample.error or not layer.entry.places:
                raise NotFound("there are no positions")
            y, x = _place(asked)
            vector = vector_at(layer_view(layer, sample.index), y, x)
            if not np.isfinite(vector).all():
                raise BadRequest("the values at this position are not all finite")
            one_each = asked.choice("each", ("sample", "all")) == "sample"
            search = nearest(layer, shelf.stored, vector, NEAREST, one_each=one_each,
                             leave_out=(sample.index, y, x))  # fmt: skip
            return shelf, search

        async def lines(shelf: ArchiveView, search: Any) -> AsyncIterator[str]:
            try:
                while not await request.is_disconnected():
                    found: Nearest | None = await self._site.workshop.do(lambda: next(search, None))
                    if found is None:
                        return
                    yield json.dumps(_told(shelf, found)) + "\n"
            except Exception as error:  # noqa: BLE001 - told in the stream
                yield json.dumps({"error": said(error)}) + "\n"

        return await self._site.answer(
            begin,
            lambda begun: StreamingResponse(lines(*begun), media_type="application/x-ndjson"),
        )


def _told(shelf: ArchiveView, found: Nearest) -> dict[str, Any]:
    places = zip(found.rows.tolist(), found.y.tolist(), found.x.tolist(), found.cosine.tolist(),
                 strict=True)  # fmt: skip
    return {
        "done": found.done, "total": found.total,
        "found": [
            {"stem": shelf.stem(row), "id": shelf.samples[row].id, "y": y, "x": x,
             "cosine": round(cosine, 6)}
            for row, y, x, cosine in places
        ],
    }  # fmt: skip


def _encoded(drawing: TileLayout, kind: str) -> bytes:
    if kind == "png":
        return encode(drawing, PictureFormat.PNG)
    return encode_figure(drawing, FigureFormat(kind))


def _of(shelf: ArchiveView, asked: Asked) -> tuple[StoredSample, StoredLayer]:
    return shelf.sample(asked.text("sample")), shelf.layer(asked.text("layer"))


def _unit(shelf: ArchiveView, asked: Asked) -> tuple[StoredLayer, int]:
    layer = shelf.layer(asked.text("layer"))
    return layer, asked.whole("channel", 0, 0, layer.entry.channels - 1)


def _place(asked: Asked) -> tuple[int, int]:
    return asked.whole("y", 0, 0, 10**5), asked.whole("x", 0, 0, 10**5)


def _driven(shelf: ArchiveView, asked: Asked) -> TileLayout:
    layer, channel = _unit(shelf, asked)
    most = asked.choice("end", ("most", "least")) == "most"
    by = asked.choice("by", ("max", "mean"))
    count = asked.whole("samples", 8, 1, 36)
    found = units.driven(shelf, layer, channel, by, count, most=most)
    return drawings.driven(shelf, layer, channel, found, asked)


def _distribution(shelf: ArchiveView, asked: Asked) -> TileLayout:
    layer, channel = _unit(shelf, asked)
    by = asked.choice("by", ("max", "mean"))
    name = f"{by} of the map" if not layer.entry.vector else "value"
    return drawings.distribution(shelf.column(layer, f"sample_{by}", channel), name)


def _values_at(shelf: ArchiveView, asked: Asked) -> Array:
    sample, layer = _of(shelf, asked)
    return vector_at(layer_view(layer, sample.index), *_place(asked))


def _crop(shelf: ArchiveView, asked: Asked) -> TileLayout:
    sample, layer = _of(shelf, asked)
    grid = layer.entry.places
    if not grid:
        raise NotFound(f"{layer.alias} has no positions that are places of the image")
    y, x = asked.whole("y", 0, 0, grid[0] - 1), asked.whole("x", 0, 0, grid[1] - 1)
    return drawings.crop(shelf, sample.index, y, x, grid)


_DRAWN: dict[str, Callable[[ArchiveView, Asked], TileLayout]] = {
    "strip": lambda shelf, asked: drawings.strip(shelf, shelf.sample(asked.text("sample"))),
    "overview": lambda shelf, asked: drawings.layer_overview(shelf, *_of(shelf, asked), asked),
    "mean": lambda shelf, asked: drawings.mean_map(
        shelf, *_of(shelf, asked), asked.whole("side", 448, 16, 1024)
    ),
    "maps": lambda shelf, asked: drawings.maps(shelf, *_of(shelf, asked), asked)[0],
    "driven": _driven,
    "distribution": _distribution,
    "vector": lambda shelf, asked: drawings.vector(_values_at(shelf, asked)),
    "crop": _crop,
    "photo": lambda shelf, asked: TileLayout(
        paper=input_image(shelf.archive, shelf.sample(asked.text("sample")).index)
    ),
    "map": lambda shelf, asked: drawings.scatter(_map(shelf, asked)),
}


def _map(shelf: ArchiveView, asked: Asked) -> DatasetMap:
    return dataset_map(shelf, shelf.layer(asked.text("layer")))


def _npy(values: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _activation(shelf: ArchiveView, asked: Asked) -> Array:
    sample, layer = _of(shelf, asked)
    return layer[sample.index]


def _csv(head: list[str], rows: Any) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def _unit_table(shelf: ArchiveView, asked: Asked) -> bytes:
    layer, channel = _unit(shelf, asked)
    columns = [shelf.column(layer, f"sample_{by}", channel).tolist() for by in ("max", "mean")]
    rows = ((i, sample.id, label_of(sample), largest, mean) for i, (sample, largest, mean)
            in enumerate(zip(shelf.samples, *columns, strict=True)))  # fmt: skip
    return _csv(["row", "id", "label", "max", "mean"], rows)


def _statistics(shelf: ArchiveView, asked: Asked) -> bytes:
    figures = shelf.statistics(shelf.layer(asked.text("layer")))
    columns = zip(*(values.tolist() for values in figures.values()), strict=True)
    return _csv(["channel", *figures], ((i, *row) for i, row in enumerate(columns)))


def _points(shelf: ArchiveView, asked: Asked) -> bytes:
    found = _map(shelf, asked)
    labels = {label: number for number, label in enumerate(shelf.labels)}
    rows = found.rows.tolist()
    content = {
        "x": [float(f"{value:.5g}") for value in found.scores[:, 0].tolist()],
        "y": [float(f"{value:.5g}") for value in found.scores[:, 1].tolist()],
        "label": [labels.get(label_of(shelf.samples[row]), -1) for row in rows],
        "labels": shelf.labels, "stem": [shelf.stem(row) for row in rows],
        "id": [shelf.samples[row].id for row in rows],
        "explained": found.explained.tolist(), "fitted_to": found.fitted_to,
    }  # fmt: skip
    return json.dumps(content, separators=(",", ":")).encode()


def _points_table(shelf: ArchiveView, asked: Asked) -> bytes:
    found = _map(shelf, asked)
    rows = (
        (row, shelf.samples[row].id, label_of(shelf.samples[row]), *scores)
        for row, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
    )
    return _csv(["row", "id", "label", "first", "second"], rows)


_TOLD: dict[tuple[str, str], Callable[[ArchiveView, Asked], bytes]] = {
    ("activation", "npy"): lambda shelf, asked: _npy(_activation(shelf, asked)),
    ("unit", "csv"): _unit_table,
    ("statistics", "csv"): _statistics,
    ("correlations", "npy"): lambda shelf, asked: _npy(
        units.correlations(shelf, shelf.layer(asked.text("layer")))
    ),
    ("map", "json"): _points,
    ("map", "csv"): _points_table,
    ("vector", "npy"): lambda shelf, asked: _npy(_values_at(shelf, asked)),
}
