"""Network access: one-line errors for downloads, and blocks without connections."""

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.common.errors import WeightsError, reraised

_CONNECT_SECONDS = 5

_tried: list[list[str]] = []
"""Refused hosts of each active `no_network` block."""


class ConnectionRefused(OSError):
    """A connection attempt inside `no_network`."""


@contextmanager
def no_network() -> Iterator[list[str]]:
    """Refuse host lookups and connections while the block runs, also in forked processes.

    Unix domain sockets remain available. Yields the refused hosts, appended as they are requested.
    """
    _install()
    tried: list[str] = []
    _tried.append(tried)
    try:
        yield tried
    finally:
        _tried.remove(tried)


@cache
def _install() -> None:
    sys.addaudithook(_audit)  # permanent: audit hooks cannot be removed


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _tried or not event.startswith("socket."):
        return
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if not isinstance(address, tuple):  # a Unix domain socket
            return
        host = address[0]
    else:
        return
    name = host.decode("utf-8", "replace") if isinstance(host, bytes) else str(host)
    for tried in _tried:
        tried.append(name)
    raise ConnectionRefused(f"network access is blocked: {name}")


PACKAGED = "model=tf_efficientnet_lite0 (its weights are installed with featuremaps)"
_WITHOUT_WEIGHTS = (
    "model.weights=PATH (a local state dict), model.weights=null (seeded random weights) or "
    + PACKAGED
)


def downloading(subject: str, instead: str = _WITHOUT_WEIGHTS) -> AbstractContextManager[None]:
    """Turn download errors into one-line errors that name the offline alternatives."""
    hint = f"; offline, use {instead}"
    return reraised(f"{subject} could not be downloaded", WeightsError, hint=hint)


@contextmanager
def library_reads(name: str, subject: str = "", *instead: str) -> Iterator[None]:
    """Turn exceptions of a library that reads or downloads a model into one-line errors."""
    with ExitStack() as stack:
        stack.enter_context(reraised(f"model.name: {name}", WeightsError))
        if subject:
            stack.enter_context(downloading(subject, *instead))
            stack.enter_context(hub_answers_at_once())
        yield


@contextmanager
def hub_answers_at_once() -> Iterator[None]:
    """Make huggingface_hub use its cache at once if its host is unreachable.

    By default it retries for most of a minute, or waits for firewalls that drop packets.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    endpoint = urlsplit(constants.ENDPOINT)
    host = endpoint.hostname or "huggingface.co"
    try:
        proxies = getproxies()
        proxied = (proxies.get("https") or proxies.get("all")) and not proxy_bypass(host)
        if not offline and not proxied:  # a proxy resolves the host itself
            port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def refuse_remote_code(arguments: Mapping[str, object]) -> None:
    """Raise ValueError for `trust_remote_code`, which runs code of a model or dataset."""
    if "trust_remote_code" in arguments:
        raise ValueError(
            "argument trust_remote_code is not allowed, because it runs code of a repository; for "
            "a model, import its class and use model=checkpoint"
        )
