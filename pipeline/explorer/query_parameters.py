"""Asked: what a URL asks for, each parameter with its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

_LONGEST = 400


class BadRequest(Exception):
    """A parameter of a URL that is malformed or out of its range."""


class Asked:
    """The query of a URL; a parameter that is absent or empty has its default."""

    def __init__(self, request: Request) -> None:
        self._params, self.query = request.query_params, request.url.query

    def text(self, name: str, default: str = "") -> str:
        """Return a text."""
        value = self._params.get(name) or default
        if len(value) > _LONGEST or "\0" in value:
            raise BadRequest(f"{name}: longer than {_LONGEST} characters, or not a text")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """Return a whole number."""
        value = self.text(name, str(default))
        if not (value.lstrip("-").isascii() and value.lstrip("-").isdecimal()):
            raise BadRequest(f"{name}: {value[:40]!r} is no whole number")
        if not low <= int(value[:20]) <= high:
            raise BadRequest(f"{name}: must be within {low} and {high}")
        return int(value)

    def choice(self, name: str, among: Sequence[str]) -> str:
        """Return one of several words, the first by default."""
        value = self.text(name, among[0])
        if value not in among:
            raise BadRequest(f"{name}: {value[:40]!r} is none of {', '.join(among)}")
        return value

    def url(self, **changes: Any) -> str:
        """Return the query with some parameters changed, None to leave one out; `?` included."""
        found = {name: value for name, value in self._params.items() if value} | changes
        return "?" + urlencode({name: value for name, value in found.items() if value is not None})
