"""Offline: no connection to another machine while a block runs, whichever library asks for one."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_tried: list[list[str]] = []
"""What each block that runs has refused; empty outside of one."""

_installing = threading.Lock()
_installed = False


class ConnectionRefused(OSError):
    """A connection that was asked for while there must be none."""


@contextmanager
def no_network() -> Iterator[list[str]]:
    """Refuse every look-up of a host and every connection while the block runs.

    Forked processes keep to it. Sockets between processes of this machine that are files are left
    alone.

    Yields:
        The hosts that were asked for, as they are refused.
    """
    global _installed
    with _installing:
        if not _installed:
            sys.addaudithook(_audit)  # for good: hooks cannot be taken away
            _installed = True
    tried: list[str] = []
    _tried.append(tried)
    try:
        yield tried
    finally:
        _tried.remove(tried)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _tried or not event.startswith("socket."):
        return
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if not isinstance(address, tuple):  # a file
            return
        host = address[0]
    else:
        return
    name = host.decode("utf-8", "replace") if isinstance(host, bytes) else str(host)
    for tried in _tried:
        tried.append(name)
    raise ConnectionRefused(f"no network: {name} was asked for")
