"""Places of archives: local paths, and URLs of object stores, which answer by requests.

What differs between them beyond the methods of `pathlib.Path` is decided here, in `atomic_files`
and in the modules `object_*`.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from pipeline.common.errors import ConfigError, one_line
from pipeline.common.object_path import CACHE, PREFIXES, ObjectPath

SCHEME = r"([A-Za-z][A-Za-z0-9+.-]+):/"
_READABLE = (*PREFIXES, "https", "http")
UPLOADS = 3


Place: TypeAlias = Path | ObjectPath
P = TypeVar("P", bound=str | Path)
T = TypeVar("T")
R = TypeVar("R")


def refuse_url(path: P) -> P:
    """Return a path unchanged; raise ConfigError for a URL or the home folder of an unknown user.

    >>> refuse_url("C:/data")
    'C:/data'
    """
    slashes = "/" if isinstance(path, str) else "*"  # `Path` merges two slashes
    if match := re.match(SCHEME + slashes, str(path)):
        url = f"{match[1]}://{str(path)[match.end() :]}"
        raise ConfigError(
            f"{url}: URLs are not supported; copy or mount the data and give a local path"
        )
    text = str(path)
    if text.startswith("~") and os.path.expanduser(text) == text:  # noqa: PTH111 - a Path would raise
        user = text.partition("/")[0].removeprefix("~")
        raise ConfigError(f"{text}: there is no user {user!r}; write the whole path, from /")
    return path


def refuse_secrets(options: str | Mapping[str, Any]) -> None:
    """Raise ConfigError if options of a store name credentials; configurations are recorded.

    >>> refuse_secrets("{aws_region: eu-west-1, proxy_url: 'http://host'}")
    """
    if not isinstance(options, str):
        options = " ".join(f"{key}={value}" for key, value in options.items())
    words = "secret|token|password|access_?key|account_?key|sas_?key|customer_?key"
    match = re.search(rf"(\w*({words})\w*)\s*([:=\s]|$)", options, re.I)
    if match or re.search(r"://[^/\s]*@", options):
        name = match[1] if match else "the password of a URL"
        remedy = f"set {match[1].upper()} in" if match else "leave it to"
        raise ConfigError(
            f"storage_options: {name} must not be in a configuration or a command line, which "
            f"others can read; {remedy} the environment"
        )


def place(
    path: str | Place, *, storage_options: Mapping[str, str] | None = None, scratch: str = "",
    cache: str = "",
) -> Place:  # fmt: skip
    """Return a local path with `~` expanded, or the `ObjectPath` of a URL.

    Args:
        path: local path or URL (`s3://`, `gs://`, `az://`, `https://`).
        storage_options: options of the store, by the names of object_store.
        scratch: local folder for files before they are uploaded.
        cache: `rows` to cache an object's rows, too.

    Raises:
        ConfigError: when the URL or `cache` is not supported, obstore is not installed, or a local
            path has options.

    >>> place("https://host/a%20b/"), str(place("s3://bucket/run//1"))
    (ObjectPath(root='https://host', key='a b'), 's3://bucket/run/1')
    """
    options = {key.lower(): str(value) for key, value in (storage_options or {}).items()}
    if cache not in ("", "rows"):
        raise ConfigError(f"cache: unknown value {cache!r}; use rows")
    if isinstance(path, ObjectPath):
        options = {**path.options, **_for_scheme(path.scheme, options)}
        if cache and not os.environ.get(CACHE):
            raise ConfigError(f"cache={cache}: set {CACHE} in the environment to a local folder")
        return replace(path, options=options, scratch=scratch or path.scratch,
                       caches_rows=bool(cache) or path.caches_rows)  # fmt: skip
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"{one_line(repr(path), limit=80)}: not a path or a URL")
    match = re.match(SCHEME + ("/" if isinstance(path, str) else "*"), str(path))
    if match is None:
        if options:
            raise ConfigError(f"storage_options: has no effect on the local path {path}; remove it")
        return Path(refuse_url(str(path))).expanduser()
    scheme = match[1].lower()
    if scheme not in _READABLE:
        refuse_url(path if isinstance(path, str) else Path(str(path)))
    url = f"{scheme}://{str(path)[match.end() :].lstrip('/')}"
    parts = urlsplit(url)
    if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{scheme}://{parts.hostname or ''}{parts.path}: give a URL like s3://bucket/prefix, "
            "without user, password, query or fragment; credentials go to the environment"
        )
    key = unquote(parts.path) if scheme.startswith("http") else parts.path
    pieces = [piece for piece in key.split("/") if piece not in ("", ".")]
    if ".." in pieces:
        raise ConfigError(f"{url}: remove the .. from the URL")
    if find_spec("obstore") is None:
        raise ConfigError(f"{url}: URLs need obstore; run: pip install 'featuremaps[remote]'")
    path = ObjectPath(f"{scheme}://{parts.netloc}", "/".join(pieces))
    return place(path, storage_options=options, scratch=scratch, cache=cache)


def _for_scheme(scheme: str, options: Mapping[str, str]) -> dict[str, str]:
    """Return options without those of the other kinds of stores."""
    others = {prefix for name, prefix in PREFIXES.items() if name != scheme}
    return {key: value for key, value in options.items() if key.partition("_")[0] not in others}


def with_options(value: T, options: Mapping[str, str]) -> T | Place:
    """Return the place of a URL with more options; anything else unchanged."""
    return place(value, storage_options=options) if isinstance(value, ObjectPath) else value


def local(path: Place) -> Path | None:
    """Return a local path unchanged; None for a URL."""
    return None if isinstance(path, ObjectPath) else path


def local_file(path: Place, need: str) -> Path:
    """Return a local path unchanged; raise ConfigError for a URL."""
    if isinstance(path, ObjectPath):
        raise ConfigError(
            f"{path}: {need} needs local files; run: featuremaps copy {path.archive} DIR"
        )
    return path


def first_missing(places: Iterable[Place]) -> Place | None:
    """Return the first local file that does not exist; objects are requested when they are read."""
    return next((path for path in places if (file := local(path)) and not file.is_file()), None)


def refuse_read_only(path: Place) -> None:
    """Raise ConfigError if nothing can be written to a URL."""
    if isinstance(path, ObjectPath):
        path.mkdir()


def uploads(path: Place | None) -> int:
    """Return the number of files that are uploaded at once; 0: files are written where they are."""
    return UPLOADS if isinstance(path, ObjectPath) else 0


def scratch_folder(path: Place) -> Path | None:
    """Return the local folder of files before they are uploaded; None if `path` is local."""
    return path.scratch_folder if isinstance(path, ObjectPath) else None


def mapped(function: Any, items: Iterable[Any], at: Place, ahead: int = 16) -> Iterator[Any]:
    """Apply a function to items, in order; in an object store, also to `ahead` following items."""
    if isinstance(at, Path):
        yield from map(function, items)
        return
    with ThreadPoolExecutor(ahead) as pool:
        yield from in_order(pool, function, items, ahead)


def in_order(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[R]:
    """Yield the result of each item, in order, while up to `count` others are with the pool."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
