"""The guard before all pages: who may ask, by which name, and what browsers may do with the answer.

The Host header is compared before anything else: a page elsewhere that points its own name at this
machine (DNS rebinding) gets nothing. A random token, in the URL that is printed, becomes a cookie
that browsers send with requests from these pages only.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LONGEST_URL = 4096
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Wraps an application; see above."""

    def __init__(
        self, app: ASGIApp, token: str, port: int, *, names: Collection[str] = (),
        allowed: Collection[str] = (), any_address: bool = False, framed: bool = False,
    ) -> None:  # fmt: skip
        """Let in who has the token.

        Args:
            app: what answers.
            token: random.
            port: of the server.
            names: of this machine, beside the loopback ones, which are let in on any port: a
                forwarded port has its own number.
            allowed: further names, with or without a port; without, any port.
            any_address: whether its other addresses may be used (bound to more than this machine).
            framed: whether pages of this machine may show it in a frame (notebooks).
        """
        self._app, self._token, self._port = app, token, port
        self._names = {name.lower() for name in names}
        self._allowed = {name.lower() for name in allowed}
        self._any_address = any_address
        self._cookie = f"featuremaps-{port}"
        local = "'self' http://localhost:* http://127.0.0.1:*"
        self._policy = _POLICY.format(ancestors=local if framed else "'none'")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["content-security-policy"] = self._policy
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refused = self._refused(scope)
        await (refused or self._app)(scope, receive, with_headers)

    def _refused(self, scope: Scope) -> Response | None:
        """Return what a request gets that may not pass, None for one that may."""
        headers = Headers(scope=scope)
        if not self._is_ours(headers.get("host", "")):
            return PlainTextResponse(
                "This server does not answer to that name; featuremaps serve --allow-host NAME "
                "lets it in.\n",
                421,
            )
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Only reading.\n", 405, {"allow": "GET, HEAD"})
        query = scope.get("query_string", b"")
        if len(scope.get("raw_path") or scope["path"].encode()) + len(query) > _LONGEST_URL:
            return PlainTextResponse("The address is too long.\n", 414)
        asked = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in asked if name == "token"]
        if given and self._fits(given[0]):
            rest = urlencode([pair for pair in asked if pair[0] != "token"])
            path = scope["path"] if scope["path"].startswith("/") else "/"
            target = "/" + path.lstrip("/") + (f"?{rest}" if rest else "")
            answer = RedirectResponse(target, 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return answer
        if not self._fits(self._from_cookies(headers.getlist("cookie"))):
            return PlainTextResponse(
                "Open the address that featuremaps serve printed, with its token.\n", 403
            )
        return None

    def _is_ours(self, host: str) -> bool:
        host = host.lower()
        match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:]+)(?::(\d{1,5}))?", host, re.ASCII)
        if match is None:
            return False
        name, port = match[1], match[2] or "80"
        if name in _LOOPBACK or self._allowed & {name, host}:
            return True  # no other site can have a loopback name, whatever the port
        if int(port) != self._port:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self._any_address  # an address cannot be pointed elsewhere, as a name can

    def _fits(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "replace"), self._token.encode())

    def _from_cookies(self, lines: list[str]) -> str:
        for line in lines:
            try:
                found = SimpleCookie(line).get(self._cookie)
            except CookieError:
                continue
            if found:
                return found.value
        return ""


def new_token() -> str:
    """Return a random token."""
    return secrets.token_urlsafe(18)


def own_names() -> list[str]:
    """Return what this machine calls itself."""
    return list({socket.gethostname(), socket.getfqdn()})
