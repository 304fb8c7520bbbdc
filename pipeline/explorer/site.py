"""The site: what every page shares, and how errors become pages."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.errors import ArchiveError, FeaturemapsError, one_line
from pipeline.common.progress import number
from pipeline.explorer.collection import ArchiveView, Collection, NotFound
from pipeline.explorer.executor import Busy, Workshop
from pipeline.explorer.query_parameters import Asked, BadRequest
from pipeline.gallery.pages import label_of, layer_note
from pipeline.gallery.templating import templates

log = logging.getLogger(__name__)
T = TypeVar("T")
_STATUS = {NotFound: 404, BadRequest: 400, Busy: 503, ArchiveError: 410}
"""What is damaged is gone for good: 410."""


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)


def said(error: BaseException) -> str:
    """Return what people are told of an error."""
    known = (NotFound, BadRequest, Busy, FeaturemapsError)
    if isinstance(error, known):
        return one_line(error, limit=500)
    if isinstance(error, HTTPException):
        return str(error.detail)
    return f"unexpected {type(error).__name__}; the server's terminal says more"


class Site:
    """Collection, workshop and templates."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.workshop = Workshop()
        self._environment = templates()
        self._environment.globals.update(
            collection=collection,
            label_of=label_of,
            layer_note=layer_note,
            shown=number,
        )

    def page(
        self, fill: Callable[..., tuple[str, dict[str, Any]]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint: `fill` takes what the URL names, and gives a template and values."""

        async def endpoint(request: Request) -> Response:
            def filled() -> str:
                named = {"asked": Asked(request), **self._named(request)}
                template, values = fill(**named)
                return self.render(template, **named, **values)

            return await self.answer(filled, HTMLResponse)

        return endpoint

    async def answer(self, work: Callable[[], T], respond: Callable[[T], Response]) -> Response:
        """Return the response to what `work` returns, from a worker thread."""
        try:
            return respond(await self.workshop.do(work))
        except Exception as error:  # noqa: BLE001 - every error is a page
            return self.fault(error)

    def _named(self, request: Request) -> dict[str, Any]:
        """Return the archive, sample and layer that a URL names."""
        named: dict[str, Any] = {}
        path = request.path_params
        if "key" in path:
            named["shelf"] = self.shelf(request)
        if "stem" in path:
            named["sample"] = named["shelf"].sample(path["stem"])
        if "layer" in path:
            named |= {"layer": named["shelf"].layer(path["layer"]), "folder": path["layer"]}
        if "channel" in path:
            named["channel"] = _channel(path["channel"], named["layer"], named["folder"])
        return named

    def render(self, template: str, **values: Any) -> str:
        """Return a page."""
        return self._environment.get_template(f"explorer/{template}").render(**values)

    def fault(self, error: BaseException) -> Response:
        """Return the page of an error."""
        status = status_of(error)
        if status == 500:
            log.error("failed", exc_info=error)
        text = self.render("fault.html", status=status, text=said(error))
        return HTMLResponse(text, status)

    def shelf(self, request: Request) -> ArchiveView:
        """Return the archive that a URL names."""
        return self.collection.shelf(request.path_params["key"])


def _channel(text: str, layer: StoredLayer, folder: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise BadRequest("channels are whole numbers")
    if int(text) >= layer.entry.channels:
        raise NotFound(f"layer {folder} has {layer.entry.channels} channels")
    return int(text)
