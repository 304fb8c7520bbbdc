"""Places of archives: local paths, and URLs of object stores.

An `ObjectPath` has the methods of `pathlib.Path` that archives use, and answers by requests. Stores
are neither listed nor locked, and their objects are only created, never changed.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from pipeline.common.errors import ConfigError

SCHEME = r"([A-Za-z][A-Za-z0-9+.-]+):/"
_PREFIXES = {"s3": "aws", "gs": "google", "az": "azure"}
"""Scheme → prefix of its options."""
WRITABLE = (*_PREFIXES,)
_READABLE = (*WRITABLE, "https", "http")
_ARCHIVE_FILES = ("manifest.json", "COMPLETE.json", "archive.h5")
_AT_ONCE = 16
AHEAD = 8
UPLOADS = 3


@dataclass(frozen=True)
class ObjectPath:
    """URL of an object, or of a prefix.

    Attributes:
        root: scheme and bucket, container or host.
        key: of the object; may be empty.
        options: options of the store, by the names of object_store; they may be secret.
        scratch: local folder for files before they are uploaded; empty: the system's.
    """

    root: str
    key: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    scratch: str = field(default="", repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.root}/{self.key}".rstrip("/")

    @property
    def scheme(self) -> str:
        return self.root.partition(":")[0]

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name or self.root.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> Self:
        return replace(self, key=self.key.rpartition("/")[0])

    def __truediv__(self, key: str, /) -> Self:
        return replace(self, key=f"{self.key}/{key}".lstrip("/"))

    def with_name(self, name: str, /) -> Self:
        return self.parent / name

    def absolute(self) -> Self:
        """Return the path itself."""
        return self

    expanduser = resolve = absolute

    @property
    def archive(self) -> Self:
        """The prefix of the archive that this object belongs to; a packed file is an archive."""
        return self.parent if self.name in _ARCHIVE_FILES else self

    def exists(self) -> bool:
        """Return whether the object exists; prefixes do not (their request decides nothing)."""
        try:
            return bool(self.suffix) and self.stat() is not None
        except (FileNotFoundError, PermissionError):  # S3 forbids missing objects without list
            return False

    is_file = exists

    def is_dir(self) -> bool:
        return False

    def glob(self, _: str, /) -> Iterator[Self]:
        return iter(())

    rglob = glob

    def iterdir(self) -> Iterator[Self]:
        return iter(())

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Raise ConfigError if the store is read-only; prefixes need not be created."""
        del parents, exist_ok
        if self.scheme not in WRITABLE:
            raise ConfigError(
                f"{self}: {self.scheme}:// is read-only; write to {', '.join(WRITABLE)} or a folder"
            )

    def unlink(self, missing_ok: bool = False) -> None:
        """Refuse."""
        del missing_ok
        raise ConfigError(
            f"{self.parent}: was begun with another configuration or fewer samples; archives in "
            "object stores cannot be changed or grown, so use another archive="
        )

    def stat(self) -> Any:
        """Return an object with `st_size`.

        Raises:
            FileNotFoundError, PermissionError, StoreError: see `object_store.request`.
        """
        from pipeline.common.object_store import head

        return head(self)

    def read_bytes(self) -> bytes:
        """Return the whole object; raises the errors of `stat`."""
        from pipeline.common.object_store import get

        return get(self)

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def open(self, mode: str = "r", /) -> IO[Any]:
        """Return the whole object as a file for reading."""
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self}: mode {mode}")
        return io.BytesIO(self.read_bytes())

    def write_text(self, text: str, encoding: str | None = None) -> None:
        """Refuse."""
        raise io.UnsupportedOperation(f"{self}: objects cannot be changed")

    @property
    def scratch_folder(self) -> Path:
        """Absolute local folder of unfinished uploads."""
        given = Path(self.scratch or tempfile.gettempdir()).expanduser().absolute()
        return given / f"featuremaps-{os.getuid()}"

    def temporary(self, name: str) -> Path:
        """Return a path in the scratch folder.

        Raises:
            OSError: when the folder cannot be created.
        """
        self.scratch_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.scratch_folder / name

    def upload(self, file: Path) -> None:
        """Create the object from a local file in one request, or find it with the same content.

        Raises:
            ArchiveError: when the object exists with other content.
            StoreError: when the upload failed.
        """
        from pipeline.common.object_store import put

        put(self, file)

    def create(self, file: Path) -> None:
        """Create the object from a local file unless it exists.

        Raises:
            StoreError: when the store would overwrite an object.
        """
        from pipeline.common.object_store import create

        create(self, file.read_bytes())


Place: TypeAlias = Path | ObjectPath
P = TypeVar("P", bound=str | Path)
T = TypeVar("T")


def refuse_url(path: P) -> P:
    """Return a path unchanged; raise ConfigError for a URL.

    >>> refuse_url("C:/data")
    'C:/data'
    """
    slashes = "/" if isinstance(path, str) else "*"  # `Path` merges two slashes
    if match := re.match(SCHEME + slashes, str(path)):
        url = f"{match[1]}://{str(path)[match.end() :]}"
        raise ConfigError(
            f"{url}: URLs are not supported; copy or mount the data and give a local path"
        )
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
    path: str | Place, *, storage_options: Mapping[str, str] | None = None, scratch: str = ""
) -> Place:
    """Return a local path with `~` expanded, or the `ObjectPath` of a URL.

    Args:
        path: local path or URL (`s3://`, `gs://`, `az://`, `https://`).
        storage_options: options of the store, by the names of object_store.
        scratch: local folder for files before they are uploaded.

    Raises:
        ConfigError: when the URL is not supported, or obstore is not installed.

    >>> place("https://host/a%20b/"), str(place("s3://bucket/run//1"))
    (ObjectPath(root='https://host', key='a b'), 's3://bucket/run/1')
    """
    options = {key.lower(): str(value) for key, value in (storage_options or {}).items()}
    if isinstance(path, ObjectPath):
        options = {**path.options, **_for_scheme(path.scheme, options)}
        return replace(path, options=options, scratch=scratch or path.scratch)
    match = re.match(SCHEME + ("/" if isinstance(path, str) else "*"), str(path))
    if match is None:
        return Path(str(path)).expanduser()
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
    options = _for_scheme(scheme, options)
    return ObjectPath(f"{scheme}://{parts.netloc}", "/".join(pieces), options, scratch)


def _for_scheme(scheme: str, options: Mapping[str, str]) -> dict[str, str]:
    """Return options without those of the other kinds of stores."""
    others = {prefix for name, prefix in _PREFIXES.items() if name != scheme}
    return {key: value for key, value in options.items() if key.partition("_")[0] not in others}


def with_options(value: T, options: Mapping[str, str]) -> T | Place:
    """Return the place of a URL with more options; anything else unchanged."""
    return place(value, storage_options=options) if isinstance(value, ObjectPath) else value


def first_missing(places: Iterable[Place]) -> Place | None:
    """Return the first local file that does not exist; objects are requested when they are read."""
    return next((each for each in places if isinstance(each, Path) and not each.is_file()), None)


def uploads(path: Place | None) -> int:
    """Return the number of files that are uploaded at once; 0: files are written where they are."""
    return UPLOADS if isinstance(path, ObjectPath) else 0


def ahead(function: Any, items: Iterable[Any], at: Place) -> Iterator[Any]:
    """Apply a function to items, in order; in an object store a few items ahead of their use."""
    if isinstance(at, Path):
        yield from map(function, items)
        return
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def mapped(function: Any, items: Iterable[Any], at: Place) -> Iterator[Any]:
    """Apply a function to items, in order; concurrently for the requests of an object store."""
    if isinstance(at, Path):
        return map(function, items)
    several = list(items)
    if len(several) < 2:
        return map(function, several)
    with ThreadPoolExecutor(min(_AT_ONCE, len(several))) as pool:
        return pool.map(function, several)
