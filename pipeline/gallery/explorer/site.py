"""The site: what every page shares, and how errors become pages."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from pipeline.foundation.errors import ArchiveError, FeaturemapsError, one_line
from pipeline.foundation.progress import number
from pipeline.gallery.explorer.asked import Asked, Refused
from pipeline.gallery.explorer.collection import Collection, Missing, Shelf
from pipeline.gallery.explorer.workshop import Busy, Workshop
from pipeline.gallery.pages import label_of, layer_note
from pipeline.gallery.templating import templates

log = logging.getLogger(__name__)
_STATUS = {Missing: 404, Refused: 400, Busy: 503, ArchiveError: 410}
"""What is damaged is gone for good: 410."""


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)


def said(error: BaseException) -> str:
    """Return what people are told of an error."""
    known = (Missing, Refused, Busy, FeaturemapsError)
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
        self, fill: Callable[[Request, Asked], tuple[str, dict[str, Any]]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint: `fill` gives a template's name and values, from a worker thread."""

        async def answer(request: Request) -> Response:
            def work() -> str:
                template, values = fill(request, Asked(request.query_params))
                return self.render(template, **values)

            try:
                return HTMLResponse(await self.workshop.do(work))
            except Exception as error:  # noqa: BLE001 - every error is a page
                return self.fault(error)

        return answer

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

    def shelf(self, request: Request) -> Shelf:
        """Return the archive that a URL names."""
        return self.collection.shelf(request.path_params["key"])
