"""Starlette application: routes of the explorer."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.explorer.collection import Collection
from pipeline.explorer.endpoints import Endpoints
from pipeline.explorer.pages import PageContext, Pages
from pipeline.explorer.site import Site
from pipeline.gallery.templating import asset

_STATIC = {
    "style.css": "text/css; charset=utf-8", "gallery.js": "text/javascript; charset=utf-8",
    "explorer.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
}  # fmt: skip


def make_app(collection: Collection) -> Starlette:
    """Return the application that serves a collection, without authentication."""
    site = Site(collection)
    pages, endpoints = Pages(site), Endpoints(site)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            raise HTTPException(404)
        text = asset(f"static/{name}")
        return Response(text, media_type=_STATIC[name], headers={"cache-control": "max-age=600"})

    async def fault(request: Request, error: Exception) -> Response:
        return site.fault(error)

    of_archive = "/a/{key}"
    pages_by_path: dict[str, Callable[..., PageContext]] = {
        "/": pages.home,
        "/side/sample": pages.side_by_side,
        "/side/unit": pages.side_unit,
        of_archive: pages.archive,
        f"{of_archive}/sample/{{stem}}": pages.sample,
        f"{of_archive}/sample/{{stem}}/{{layer}}": pages.maps,
        f"{of_archive}/layer/{{layer}}": pages.layer,
        f"{of_archive}/layer/{{layer}}/unit/{{channel}}": pages.unit,
        f"{of_archive}/at/{{stem}}/{{layer}}": pages.position,
        f"{of_archive}/map/{{layer}}": pages.dataset,
    }
    routes = [Route(path, site.page(fill), methods=["GET"]) for path, fill in pages_by_path.items()]
    routes += [
        Route("/static/{name}", static, methods=["GET"]),
        Route(f"{of_archive}/draw/{{what}}.{{kind}}", endpoints.draw, methods=["GET"]),
        Route(f"{of_archive}/data/{{what}}.{{kind}}", endpoints.data, methods=["GET"]),
        Route(f"{of_archive}/nearest", endpoints.nearest, methods=["GET"]),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={HTTPException: fault, Exception: fault},
    )
