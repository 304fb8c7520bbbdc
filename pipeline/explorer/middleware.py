"""Authentication middleware: checks the Host header and a token, and sets security headers.

The Host header is checked first, against DNS rebinding. The random token of the printed URL becomes
a SameSite cookie, which browsers send only with requests from these pages.
"""

import ipaddress
import re
import secrets
from collections.abc import Collection
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
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


class AuthMiddleware:
    """ASGI middleware around an application; see the module docstring."""

    def __init__(
        self, app: ASGIApp, token: str, port: int, *, names: Collection[str] = (),
        allowed: Collection[str] = (), any_address: bool = False, framed: bool = False,
    ) -> None:  # fmt: skip
        """Admit requests that carry the token.

        Args:
            app: wrapped application.
            token: secret of the URL and the cookie.
            port: port of the server.
            names: further host names of this machine. Loopback names are admitted on any port,
                since a forwarded port has its own number.
            allowed: other host names, with a port or for any port.
            any_address: admit any IP address as host (bound to more than loopback).
            framed: allow pages of this machine to embed it in a frame (notebooks).
        """
        self._app, self._token, self._port = app, token, port
        self._names = {name.lower() for name in names}
        self._allowed = {name.lower() for name in allowed}
        self._any_address = any_address
        self._cookie = f"featuremaps-{port}"
        local = "'self' http://localhost:* http://127.0.0.1:*"
        self._policy = _POLICY.format(ancestors=local if framed else "'none'")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
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

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the response to a refused request, None if it may pass."""
        request = Request(scope)
        if not self._is_ours(request.headers.get("host", "")):
            return PlainTextResponse(
                "unknown host name; allow it with featuremaps serve --allow-host NAME\n", 421
            )
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse(
                "read-only server; use GET or HEAD\n", 405, {"allow": "GET, HEAD"}
            )
        if len(scope["raw_path"]) + len(scope["query_string"]) > _LONGEST_URL:
            return PlainTextResponse("the URL is too long\n", 414)
        parameters = request.query_params
        if self._is_token(parameters.get("token", "")):
            rest = urlencode([pair for pair in parameters.multi_items() if pair[0] != "token"])
            target = "/" + scope["path"].lstrip("/") + (f"?{rest}" if rest else "")
            response = RedirectResponse(target, 303)
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return response
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return PlainTextResponse(
                "missing token; open the URL that featuremaps serve printed\n", 403
            )
        return None

    def _is_ours(self, host: str) -> bool:
        host = host.lower()
        match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:]+)(?::(\d{1,5}))?", host, re.ASCII)
        if match is None:
            return False
        name, port = match[1], match[2] or "80"
        if name in _LOOPBACK or self._allowed & {name, host}:
            return True  # no other site can have a loopback name
        if int(port) != self._port:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self._any_address  # DNS rebinding needs a name

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self._token.encode())
