"""S3 in a thread of the tests (moto), with counted requests and injected faults."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "activations"
URL = f"s3://{BUCKET}/runs/1"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-id",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "AWS_REGION": "us-east-1",
}
Answer = tuple[str, list[tuple[str, str]], bytes]


@dataclass(frozen=True)
class Request:
    """A request as the server saw it."""

    method: str
    path: str
    range: str
    sent: int


@dataclass
class ObjectStore:
    """The server.

    Attributes:
        endpoint: its URL.
        requests: all requests so far.
        fault: method and number of a request, counted from `clear` → what is done to it: `500`,
            `503`, `reset`, `truncate`, `stall` (before the answer), `pause` (in its body), `lost`
            (done, but without an answer) or empty.
        latency: seconds before each answer.
        ignores_conditions: whether existing objects are overwritten.
        hides_missing: whether missing objects are forbidden, as without permission to list.
    """

    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[str, int], str] = lambda method, number: ""
    latency: float = 0.0
    ignores_conditions: bool = False
    hides_missing: bool = False
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> Any:
        """Start the server; return it."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        return server

    def clear(self) -> None:
        """Forget requests and faults."""
        self.requests.clear()
        self._count, self.latency = 0, 0.0
        self.ignores_conditions = self.hides_missing = False
        self.fault = lambda method, number: ""

    def count(self, method: str = "", path: str = "") -> int:
        """Count the requests of a method whose path contains a text."""
        return sum(method in each.method and path in each.path for each in self.requests)

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            self._count += 1
            fault = self.fault(method, self._count)
        time.sleep(self.latency)
        if fault == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if fault.isdigit():
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            start_response(f"{fault} Injected", [("Content-Length", "0")])
            return []
        if fault == "stall":
            time.sleep(3)
        if self.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        head: list[Any] = []
        body = b"".join(self._app(environ, lambda *given: head.extend(given[:2])))
        status, headers = head[:2]
        if self.hides_missing and status.startswith("404"):
            status = "403 Forbidden"
        requested = environ.get("HTTP_RANGE", "")
        with self._lock:
            self.requests.append(Request(method, path, requested, len(body)))
        if fault == "lost":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if fault == "truncate":
            headers = [pair for pair in headers if pair[0].lower() != "content-length"]
            start_response(status, [*headers, ("Content-Length", str(len(body)))])
            return [body[: len(body) // 2]]
        start_response(status, headers)
        return _paused(body) if fault == "pause" else [body]


def _paused(body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    time.sleep(3)
    yield body[len(body) // 2 :]
