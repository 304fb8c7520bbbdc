"""Paths of objects in stores: the methods of `pathlib.Path` that archives use, by requests.

Stores are neither listed nor locked, and their objects are only created, never changed.
"""

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Any, Self

from pipeline.common import object_store
from pipeline.common.errors import ConfigError

PREFIXES = {"s3": "aws", "gs": "google", "az": "azure"}
"""Scheme of a store that can be written → prefix of its options."""
CACHE = "FEATUREMAPS_CACHE"
"""Environment variable: folder of the cache of objects; see `disk_cache.py`."""
_ARCHIVE_FILES = ("manifest.json", "COMPLETE.json", "archive.h5")


@dataclass(frozen=True)
class ObjectPath:
    """URL of an object, or of a prefix.

    Attributes:
        root: scheme and bucket, container or host.
        key: of the object; may be empty.
        options: options of the store, by the names of object_store; they may be secret.
        scratch: local folder for files before they are uploaded; empty: the system's.
        caches_rows: whether rows are cached too.
    """

    root: str
    key: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    scratch: str = field(default="", repr=False, compare=False)
    caches_rows: bool = field(default=False, repr=False, compare=False)

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
        if self.scheme not in PREFIXES:
            raise ConfigError(
                f"{self}: {self.scheme}:// is read-only; write to {', '.join(PREFIXES)} or a folder"
            )

    def unlink(self, missing_ok: bool = False) -> None:
        """Refuse."""
        del missing_ok
        raise ConfigError(
            f"{self.parent}: was begun with another configuration or fewer samples; archives in "
            "object stores cannot be changed or grown, so use another archive="
        )

    def stat(self) -> Any:
        """Return an object with `st_size`; raises the errors of `object_store.request`."""
        return SimpleNamespace(st_size=object_store.head(self))

    def read_bytes(self) -> bytes:
        """Return the whole object; raises the errors of `stat`."""
        return object_store.get(self)

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
        folder = Path(self.scratch or tempfile.gettempdir()).expanduser().absolute()
        return folder / f"featuremaps-{os.getuid()}"

    def upload(self, file: Path) -> None:
        """Create the object from a local file in one request, or find it with the same content."""
        object_store.put(self, file)

    def create(self, content: bytes) -> None:
        """Create the object unless it exists."""
        object_store.create(self, content)
