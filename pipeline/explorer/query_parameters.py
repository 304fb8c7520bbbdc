"""Validated query parameters of a URL."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

_LONGEST = 400


class BadRequest(Exception):
    """A URL parameter is malformed or out of range."""


class QueryParameters:
    """Query parameters of a request; absent or empty ones have their default.

    Attributes:
        raw: the query string.
    """

    def __init__(self, request: Request) -> None:
        self._params, self.raw = request.query_params, request.url.query

    def text(self, name: str, default: str = "") -> str:
        """Return a string; raise `BadRequest` if it is too long."""
        value = self._params.get(name) or default
        if len(value) > _LONGEST or "\0" in value:
            raise BadRequest(f"{name}: must be text of at most {_LONGEST} characters")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """Return an integer within `low` and `high`."""
        value = self.text(name, str(default))
        if not re.fullmatch("-?[0-9]+", value):
            raise BadRequest(f"{name}: {value[:40]!r} is not an integer")
        if not low <= int(value) <= high:
            raise BadRequest(f"{name}: must be between {low} and {high}")
        return int(value)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """Return one of several choices, the first by default."""
        value = self.text(name, choices[0])
        if value not in choices:
            raise BadRequest(f"{name}: unknown value {value[:40]!r}; use {', '.join(choices)}")
        return value

    def url(self, **changes: Any) -> str:
        """Return the query string with `?` and some parameters changed; None removes one."""
        parameters = {name: value for name, value in self._params.items() if value} | changes
        return "?" + urlencode(
            {name: value for name, value in parameters.items() if value is not None}
        )
