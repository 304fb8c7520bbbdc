"""Requests to object stores, by obstore: retries, timeouts, and errors as one line.

Messages never contain what the library says, since its texts may hold signed URLs. Requests hang in
a process that is forked after a store was made, so they are refused there.
"""

from __future__ import annotations

import logging
import mmap
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pipeline.common.errors import ArchiveError, ConfigError, DoesNotFitError, StoreError
from pipeline.common.progress import size

if TYPE_CHECKING:
    from pipeline.common.object_path import ObjectPath

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 120.0
"""Time after which a request is not repeated."""
LARGEST = 5 * 2**30
"""Bytes that one request can upload."""
TAIL = 256 * 2**10
"""Bytes at the end of a file that are read when it is opened: usually its footer and checksums."""
_RANGE, _RANGES_AT_ONCE = 8 * 2**20, 16
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_READ_SECONDS = 20  # without a byte
_BYTES_PER_SECOND = 2**20  # the slowest upload
_TRANSIENT = frozenset((408, 409, 429, 500, 502, 503, 504))
_CAUSES = {
    "NotPartial": "the server ignores byte ranges",
    "InvalidCertificate": "its TLS certificate is not valid",
    "dns error": "unknown host",
    "TimedOut|timed out": "no answer in time",
    "ConnectionRefused": "connection refused",
}
_ENDPOINTS = {"s3": r"(aws_)?endpoint(_url(_s3)?)?", "az": r"(azure_)?(storage_)?endpoint"}
_METADATA = "169.254.169.254"
_NO_CREDENTIALS = (
    "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true "
    "for a public bucket"
)
_CLIENT_OPTIONS = frozenset((
    "allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url", "proxy_excludes",
    "read_timeout", "root_certificate", "timeout", "user_agent",
))  # fmt: skip

_stores: dict[Any, Any] = {}
_lock = threading.Lock()
_forked = False


def _note_fork() -> None:
    global _forked, _lock
    _forked, _lock = _forked or bool(_stores), threading.Lock()


os.register_at_fork(after_in_child=_note_fork)


def in_use() -> bool:
    """Return whether this process has made a store; its forks cannot send requests."""
    return bool(_stores)


def head(path: ObjectPath) -> int:
    """Return the size of an object; see `request`."""
    return int(request(path, lambda store: store.head(path.key))["size"])


def get(path: ObjectPath) -> bytes:
    """Return the content of an object; see `request`."""
    content: bytes = request(path, lambda store: store.get(path.key).bytes().to_bytes())
    return content


def get_range(path: ObjectPath, start: int, stop: int) -> Any:
    """Return a range of bytes as a buffer; see `request`."""

    def read(store: Any) -> Any:
        content = store.get_range(path.key, start=start, end=stop)
        if len(content) != stop - start:
            raise ValueError("truncated")
        return content

    return request(path, read)


def get_tail(path: ObjectPath, length: int) -> tuple[int, Any]:
    """Return an object's size and at most its last `length` bytes; see `request`."""

    def read(store: Any) -> tuple[int, Any]:
        result = store.get(path.key, options={"range": {"suffix": length}})
        total, content = result.meta["size"], result.bytes()
        if len(content) != min(length, total):
            raise ValueError("truncated")
        return total, content

    if path.scheme == "az":  # Azure has no suffix ranges
        total = head(path)
        return total, get_range(path, max(0, total - length), total)
    return request(path, read)


def download(path: ObjectPath, file: Path) -> None:
    """Write an object to a local file, in ranges on several threads; see `request`."""
    try:
        total = head(path)
    except OSError as error:  # those below name the file
        raise ArchiveError(f"{path}: {error.strerror}") from None
    with file.open("wb") as opened, ThreadPoolExecutor(_RANGES_AT_ONCE) as pool:

        def fetch(start: int) -> None:
            content = memoryview(get_range(path, start, min(start + _RANGE, total)))
            while content:
                written = os.pwrite(opened.fileno(), content, start)
                content, start = content[written:], start + written

        list(pool.map(fetch, range(0, total, _RANGE)))


def put(path: ObjectPath, file: Path) -> None:
    """See `ObjectPath.upload`."""
    length = file.stat().st_size
    if length > LARGEST:
        raise DoesNotFitError(
            f"{path}: {size(length)} are more than the {size(LARGEST)} that one upload can hold; "
            "set a smaller storage.shard_samples"
        )
    with file.open("rb") as opened:
        content = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) if length else b""
        # By another writer, or by a request whose answer was lost.
        if not _created(path, content) and not _same(path, file, length):
            raise ArchiveError(
                f"{path}: exists with other content; another extraction writes this archive: use "
                "another archive="
            )


def create(path: ObjectPath, content: bytes) -> None:
    """See `ObjectPath.create`."""
    try:
        content = get(path)
    except (FileNotFoundError, PermissionError):
        if not _created(path, content):  # another process was faster
            return
    if _created(path, content):
        raise StoreError(
            f"{path}: the store overwrites existing objects (it ignores If-None-Match), so several "
            "writers could damage an archive; use another store"
        )


def _created(path: ObjectPath, content: Any) -> bool:
    """Create an object in one request; return False if it exists."""
    try:
        request(
            path, lambda store: store.put(path.key, content, mode="create", use_multipart=False),
            seconds=60 + len(content) // _BYTES_PER_SECOND,
        )  # fmt: skip
    except FileExistsError:
        return False
    except (FileNotFoundError, PermissionError) as error:
        raise StoreError(
            f"{path}: {error.strerror}; check the bucket and the permission to write"
        ) from None
    return True


def _same(path: ObjectPath, file: Path, length: int) -> bool:
    """Return whether an object has the size of a file, and its content or, if large, its end."""
    stored, tail = get_tail(path, TAIL) if length else (head(path), b"")
    with file.open("rb") as opened:
        opened.seek(max(0, length - len(tail)))
        return stored == length and opened.read() == memoryview(tail)


def request(path: ObjectPath, send: Callable[[Any], T], *, seconds: int = 0) -> T:
    """Return what a request returns; repeat it after transient failures, with growing pauses.

    Args:
        path: of the object.
        send: sends the request by a store.
        seconds: limit of the whole request; 0: only of the time without a byte.

    Raises:
        FileNotFoundError, PermissionError, FileExistsError: as their HTTP status says.
        StoreError: with URL and cause, when it failed otherwise or too often.
    """
    store, start, pause = _store(path, seconds), time.monotonic(), _FIRST_PAUSE
    while True:
        try:
            return send(store)
        except Exception as error:  # noqa: BLE001 - obstore raises several types
            text = f"{type(error).__name__} {error!r}"
            match = re.search(r"status code: (\d{3})", text)
            status = int(match[1]) if match else 0
        cause = _cause(status, text)
        if "AlreadyExists" in text or status == HTTPStatus.PRECONDITION_FAILED:
            raise FileExistsError(17, cause, str(path))
        if _METADATA not in text:
            if status == HTTPStatus.NOT_FOUND:
                raise FileNotFoundError(2, cause, str(path))
            if status == HTTPStatus.FORBIDDEN:
                raise PermissionError(13, f"{cause}: missing, or not permitted", str(path))
        hopeless = re.search("NotPartial|InvalidCertificate", text)
        final = hopeless or (status and status not in _TRANSIENT)
        limit = RETRY_SECONDS / 10 if _METADATA in text else RETRY_SECONDS
        if final or time.monotonic() - start > limit:
            raise StoreError(f"{path}: {cause}")
        log.log(logging.WARNING if pause > 1 else logging.DEBUG, "%s: %s; retrying", path, cause)
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _cause(status: int, text: str) -> str:
    if _METADATA in text:  # the last place where credentials are looked for
        return _NO_CREDENTIALS
    if status:
        known = status in {code.value for code in HTTPStatus}
        return f"HTTP {status} {HTTPStatus(status).phrase if known else ''}".rstrip()
    inner = text.partition("inner:")[2] or text  # without the URL
    causes = (cause for words, cause in _CAUSES.items() if re.search(words, inner))
    return next(causes, "the connection broke")


def _store(path: ObjectPath, seconds: int) -> Any:
    """Return the store of a path, made once for the same options and environment."""
    if _forked:
        raise StoreError(
            f"{path}: cannot be read in a process that was forked after a store was used; start "
            'processes by spawn or forkserver, e.g. DataLoader(multiprocessing_context="spawn")'
        )
    names = ("AWS_", "AZURE_", "GOOGLE_")
    environment = {key: os.environ[key] for key in os.environ if key.startswith(names)}
    limit = 1 << (seconds - 1).bit_length() if seconds else 0
    key = (path.root, limit, *sorted(path.options.items()), *sorted(environment.items()))
    with _lock:
        if key not in _stores:
            _stores[key] = _make(path, limit, environment)
        return _stores[key]


def _is_address(text: str) -> bool:
    """Return whether a text is a URL of http or https; obstore panics on others."""
    try:
        parts = urlsplit(text)
        web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # e.g. a port of six digits
        return False
    return bool(web and re.fullmatch("[!-~]+", text))


def _make(path: ObjectPath, limit: int, environment: Mapping[str, str]) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    for name, value in {**environment, **path.options}.items():
        endpoint = re.fullmatch(_ENDPOINTS.get(path.scheme, ""), name, re.IGNORECASE)
        if endpoint and not _is_address(value):
            raise ConfigError(
                f"{name}: not the address of a server; set it to one like http://localhost:9000"
            )
    addresses = (path.root, *path.options.values(),
             *(value for key, value in environment.items() if "ENDPOINT" in key))  # fmt: skip
    client: dict[str, Any] = {"allow_http": any(value.startswith("http://") for value in addresses)}
    client |= {"connect_timeout": "10s", "timeout": timedelta(seconds=limit or 3600)}
    if not limit:
        client["read_timeout"] = timedelta(seconds=_READ_SECONDS)
    client |= {key: value for key, value in path.options.items() if key in _CLIENT_OPTIONS}
    config: Any = {key: value for key, value in path.options.items() if key not in _CLIENT_OPTIONS}
    secure = path.scheme == "s3" and not client["allow_http"]
    if secure and "aws_unsigned_payload" not in {*config, *map(str.lower, environment)}:
        config["aws_unsigned_payload"] = "true"  # TLS protects it: saves a SHA-256 of every upload
    options: Any = client
    try:
        return from_url(
            path.root, config=config, client_options=options, retry_config={"max_retries": 0}
        )
    except (BaseError, ValueError, TypeError):  # its text may hold values
        raise ConfigError(
            f"{path.root}: invalid storage_options ({', '.join(path.options)}) or environment; use "
            "the names of object_store, e.g. aws_endpoint_url, aws_region"
        ) from None
