"""The network: downloads by other libraries, and blocks in which nothing may connect.

A download that fails is one line, and without a network nothing waits.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.common.errors import ConfigError, WeightsError, one_line

_CONNECT_SECONDS = 5

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


PACKAGED = "model=tf_efficientnet_lite0 (its weights are installed with featuremaps)"
_WITHOUT_WEIGHTS = (
    "model.weights=PATH (a local state dict), model.weights=null (seeded random weights) or "
    + PACKAGED
)


@contextmanager
def downloading(what: str, instead: str = _WITHOUT_WEIGHTS) -> Iterator[None]:
    """Turn a failed download into one line that names the alternatives.

    Args:
        what: is downloaded.
        instead: what to set offline.
    """
    try:
        yield
    except (ConfigError, WeightsError):
        raise
    except Exception as error:
        # Every library has its own: URLError, httpx's, huggingface_hub's, RuntimeError for a bad
        # hash.
        raise WeightsError(
            f"{what} could not be downloaded ({one_line(error, limit=160)}); offline, use {instead}"
        ) from error


@contextmanager
def library_reads(name: str, what: str = "", *instead: str) -> Iterator[None]:
    """Turn what a library raises while it reads or downloads a model into one line."""
    try:
        with ExitStack() as stack:
            if what:
                stack.enter_context(downloading(what, *instead))
                stack.enter_context(hub_answers_at_once())
            yield
    except (ConfigError, WeightsError):
        raise
    except Exception as error:
        raise WeightsError(f"model.name: {name}: {one_line(error)}") from error


@contextmanager
def hub_answers_at_once() -> Iterator[None]:
    """Let huggingface_hub fall back to its cache at once where its host cannot be reached.

    Otherwise it retries for most of a minute, or waits for a firewall that drops its packets.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    endpoint = urlsplit(constants.ENDPOINT)
    host = endpoint.hostname or "huggingface.co"
    try:
        proxies = getproxies()
        behind = (proxies.get("https") or proxies.get("all")) and not proxy_bypass(host)
        if not before and not behind:  # a proxy looks the host up itself
            port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def refuse_remote_code(arguments: Mapping[str, object]) -> None:
    """Refuse to let a library run the code that comes with a model or dataset.

    Raises:
        ValueError: when the arguments ask for it.
    """
    if "trust_remote_code" in arguments:
        raise ValueError(
            "arguments: trust_remote_code is not taken, no code of a repository is run here; "
            "for a model, import the class yourself and use model=checkpoint"
        )
