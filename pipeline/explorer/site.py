"""Threads, cached pictures, templates and error pages shared by all endpoints."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.errors import ArchiveError, FeaturemapsError, one_line, plural
from pipeline.common.machine import cores
from pipeline.common.progress import number
from pipeline.explorer.cache import LRUCache
from pipeline.explorer.collection import ArchiveView, Collection, NotFound
from pipeline.explorer.positions import position_grid
from pipeline.explorer.query_parameters import BadRequest, QueryParameters
from pipeline.gallery.pages import label_of, layer_note
from pipeline.gallery.templating import templates
from pipeline.rendering.attention_maps import query_text
from pipeline.rendering.views import LayerView, SampleView

log = logging.getLogger(__name__)
T = TypeVar("T")
_SECONDS = 60.0
_PICTURE_BYTES = 64 * 2**20


class Busy(Exception):
    """A request takes too long."""


_STATUS = {NotFound: 404, BadRequest: 400, Busy: 503, ArchiveError: 410}
"""410 Gone: a damaged archive does not recover."""


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)


def error_text(error: BaseException) -> str:
    """Return the message of an error for users."""
    if isinstance(error, (*_STATUS, FeaturemapsError)):
        return one_line(error)
    if isinstance(error, HTTPException):
        return str(error.detail)
    return f"unexpected {type(error).__name__}; see the server's log for details"


class Resource:
    """What a URL names, by its path or else its query: archive, sample, layer, channel.

    Parts of a page's path have the names of the attributes, which its template takes.
    """

    def __init__(self, request: Request, collection: Collection) -> None:
        self.path: dict[str, str] = request.path_params
        self.query = QueryParameters(request)
        self.collection = collection

    @cached_property
    def archive_view(self) -> ArchiveView:
        """The archive of the path."""
        return self.collection.archive_view(self.path["archive_view"])

    @cached_property
    def sample(self) -> StoredSample:
        """The sample, which may be skipped."""
        return self.archive_view.sample(self.path.get("sample") or self.query.text("sample"))

    @property
    def stored_sample(self) -> StoredSample:
        """The sample; raises NotFound if it was skipped."""
        if self.sample.error:
            raise NotFound(f"{self.sample.id} was skipped: {self.sample.error}")
        return self.sample

    @property
    def folder(self) -> str:
        """The layer's name in URLs."""
        return self.path.get("layer") or self.query.text("layer")

    @cached_property
    def layer(self) -> StoredLayer:
        """The layer."""
        return self.archive_view.layer(self.folder)

    @cached_property
    def channel(self) -> int:
        """The channel of the layer."""
        channels = self.layer.entry.channels
        if "channel" not in self.path:
            return self.query.whole("channel", 0, 0, channels - 1)
        text = self.path["channel"]
        if not (text.isascii() and text.isdecimal()) or len(text) > 9:
            raise BadRequest("channel: must be an integer")
        if int(text) >= channels:
            raise NotFound(f"layer {self.folder} has {plural(channels, 'channel')}")
        return int(text)

    def position(self) -> tuple[int, int]:
        """Return the row and column of the query."""
        return self.query.whole("y", 0, 0, 10**5), self.query.whole("x", 0, 0, 10**5)

    def view(self) -> tuple[SampleView, LayerView]:
        """Return the sample with the layer alone for the renderers, and the layer."""
        view = self.archive_view.view(self.stored_sample, [self.layer])
        return view, view.layers[0]


class Site:
    """Collection, worker threads, picture cache and templates."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.pictures = LRUCache(_PICTURE_BYTES)
        self._pool = ThreadPoolExecutor(max(2, cores()), "explorer")
        self._environment = templates()
        self._environment.globals.update(
            collection=collection,
            label_of=label_of,
            layer_note=layer_note,
            position_grid=position_grid,
            query_text=query_text,
            shown=number,
        )

    def page(
        self, fill: Callable[[Resource], tuple[str, dict[str, Any]]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint; `fill` maps what a URL names to a template and its context."""

        async def endpoint(request: Request) -> Response:
            def render() -> str:
                at = Resource(request, self.collection)
                named = {name: getattr(at, name) for name in at.path}
                template, values = fill(at)
                folder = at.path.get("layer")
                return self.render(template, query=at.query, folder=folder, **named, **values)

            return await self.answer(render, HTMLResponse)

        return endpoint

    async def do(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, run in a worker thread."""
        running = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.wait_for(running, _SECONDS)
        except TimeoutError:
            raise Busy(f"the request took more than {_SECONDS:.0f} seconds") from None

    async def answer(self, work: Callable[[], T], respond: Callable[[T], Response]) -> Response:
        """Run `work` in a worker thread and return the response to its result."""
        try:
            return respond(await self.do(work))
        except Exception as error:  # noqa: BLE001 - every error is a page
            return self.fault(error)

    def render(self, template: str, **values: Any) -> str:
        """Render a template."""
        return self._environment.get_template(f"explorer/{template}").render(**values)

    def fault(self, error: BaseException) -> Response:
        """Return the error page."""
        status = status_of(error)
        if status == 500:
            log.error("request failed", exc_info=error)
        text = self.render("fault.html", status=status, text=error_text(error))
        return HTMLResponse(text, status)
