"""Starlette application: routes, and endpoints for pictures, data and nearest positions."""

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pipeline.common.arrays import Array
from pipeline.explorer.collection import ArchiveView, Collection, NotFound
from pipeline.explorer.content import DATA, PICTURES
from pipeline.explorer.drawings import values_at
from pipeline.explorer.pages import PAGES
from pipeline.explorer.positions import nearest
from pipeline.explorer.query_parameters import BadRequest
from pipeline.explorer.site import Resource, Site, error_text, status_of
from pipeline.gallery.templating import STATIC, asset
from pipeline.rendering.drawing.picture_formats import encode
from pipeline.rendering.drawing.text_and_resize import placeholder
from pipeline.rendering.drawing.tile_layout import TileLayout

NEAREST = 24
_MEDIA = {
    "png": "image/png", "pdf": "application/pdf", "svg": "image/svg+xml",
    "npy": "application/octet-stream", "csv": "text/csv", "json": "application/json",
    "css": "text/css", "js": "text/javascript",
}  # fmt: skip


def make_app(collection: Collection) -> Starlette:
    """Return the application that serves a collection, without authentication."""
    site = Site(collection)
    endpoints = Endpoints(site)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in (*STATIC, "explorer.js"):
            raise HTTPException(404)
        media_type = _MEDIA[name.rpartition(".")[2]]
        headers = {"cache-control": "max-age=600"}
        return Response(asset(f"static/{name}"), media_type=media_type, headers=headers)

    async def fault(request: Request, error: Exception) -> Response:
        return site.fault(error)

    routes = [Route(path, site.page(fill)) for path, fill in PAGES.items()]
    routes += [
        Route("/static/{name}", static),
        Route("/a/{archive_view}/draw/{what}.{kind}", endpoints.draw),
        Route("/a/{archive_view}/data/{what}.{kind}", endpoints.data),
        Route("/a/{archive_view}/nearest", endpoints.nearest),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: fault, Exception: fault})


class Endpoints:
    """Endpoints that return pictures and data."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def draw(self, request: Request) -> Response:
        """Return a picture; on an error, a picture of the message."""
        what, kind = request.path_params["what"], request.path_params["kind"]
        try:
            if kind not in ("png", "pdf", "svg") or what not in PICTURES:
                raise NotFound(f"no picture {what}.{kind}")
            at = Resource(request, self._site.collection)
            parameters = tuple(sorted(request.query_params.items()))
            content = await self._site.do(
                lambda: self._site.pictures.get(
                    (at.archive_view.key, what, kind, parameters),
                    lambda: encode(PICTURES[what](at), kind),
                )
            )
        except Exception as error:  # noqa: BLE001 - every error is a picture
            picture = encode(TileLayout(paper=placeholder(error_text(error), 360)), "png")
            return Response(picture, status_of(error), media_type="image/png")
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}  # the archive may change
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if kind != "png":
            headers["content-disposition"] = f'inline; filename="{what}.{kind}"'
        return Response(content, media_type=_MEDIA[kind], headers=headers)

    async def data(self, request: Request) -> Response:
        """Return the data of a page."""
        what, kind = request.path_params["what"], request.path_params["kind"]

        def work() -> bytes:
            if (what, kind) not in DATA:
                raise NotFound(f"no data {what}.{kind}")
            return DATA[what, kind](Resource(request, self._site.collection))

        def respond(content: bytes) -> Response:
            headers = {"content-disposition": f'attachment; filename="{what}.{kind}"'}
            return Response(content, 200, headers if kind != "json" else {}, _MEDIA[kind])

        return await self._site.answer(work, respond)

    async def nearest(self, request: Request) -> Response:
        """Stream the nearest positions so far, one line of JSON per block of samples.

        The search ends when the client disconnects.
        """

        def start_search() -> tuple[ArchiveView, Any]:
            at = Resource(request, self._site.collection)
            row = at.stored_sample.index
            if not at.layer.entry.spatial_shape:
                raise NotFound("this layer has no positions")
            vector = values_at(at)
            if not np.isfinite(vector).all():
                raise BadRequest("the values at this position are not all finite")
            per_sample = at.query.choice("each", ("sample", "all")) == "sample"
            search = nearest(at.layer, at.archive_view.stored, vector, NEAREST, one_each=per_sample,
                             leave_out=(row, *at.position()))  # fmt: skip
            return at.archive_view, search

        async def lines(archive_view: ArchiveView, search: Any) -> AsyncIterator[str]:
            try:
                while not await request.is_disconnected():
                    result = await self._site.do(lambda: next(search, None))
                    if result is None:
                        return
                    yield json.dumps(_nearest_json(archive_view, *result)) + "\n"
            except Exception as error:  # noqa: BLE001 - sent in the stream
                yield json.dumps({"error": error_text(error)}) + "\n"

        return await self._site.answer(
            start_search,
            lambda started: StreamingResponse(lines(*started), media_type="application/x-ndjson"),
        )


def _nearest_json(archive_view: ArchiveView, done: int, best: Array) -> dict[str, Any]:
    positions = [
        {"stem": archive_view.stem(int(row)), "id": archive_view.samples[int(row)].id,
         "y": int(y), "x": int(x), "cosine": round(cosine, 6)}
        for row, y, x, cosine in best.tolist()
    ]  # fmt: skip
    return {"done": done, "total": len(archive_view.stored), "found": positions}
