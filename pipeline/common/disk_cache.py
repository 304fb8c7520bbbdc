"""Cache of parts of objects in a local folder that processes share, bounded in size.

It never fails a read: a damaged or unfinished entry is missing, and a folder that cannot be written
is only logged. The least recently used entries are deleted.
"""

import logging
import os
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from xxhash import xxh3_64_digest

from pipeline.common.arrays import Array
from pipeline.common.atomic_files import replacing
from pipeline.common.errors import ConfigError, FeaturemapsError
from pipeline.common.object_path import CACHE
from pipeline.common.paths import local_path
from pipeline.common.places import Place

log = logging.getLogger(__name__)

SIZE = "FEATUREMAPS_CACHE_GB"
"""Environment variable: largest size of the cache in gigabytes."""
_GIGABYTES = "20"


class DiskCache:
    """The entries of a folder."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._unchecked = limit  # bytes written since the size was checked; roughly, among threads

    def read(self, name: str, out: Array) -> bool:
        """Fill bytes with the entry of their size; return False if it is missing or damaged."""
        checksum, path = bytearray(8), self._folder / name
        try:
            with path.open("rb", buffering=0) as file:
                os.utime(file.fileno())
                count = os.preadv(file.fileno(), [checksum, out.data], 0)
        except OSError:
            return False
        return count == 8 + len(out) and xxh3_64_digest(out.data) == checksum

    def write(self, name: str, content: Array) -> None:
        """Create or replace an entry, if the disk permits it."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (
                replacing(self._folder / name, durable=False) as temporary,
                temporary.open("wb") as file,
            ):
                file.write(xxh3_64_digest(content.data))
                file.write(content.data)
            self._unchecked += len(content)
            if self._unchecked > self._limit // 16:
                self._unchecked = 0
                self._evict()
        except (OSError, FeaturemapsError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            _log_once(self._folder, getattr(cause, "strerror", ""))

    def forget(self, prefix: str) -> None:
        """Delete the entries whose names start with a prefix."""
        with suppress(OSError):
            for path in self._folder.glob(f"{prefix}*"):
                path.unlink()

    def _evict(self) -> None:
        """Delete the least recently used entries, until an eighth of the size is free."""
        entries = []
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # deleted by another process
                status = entry.stat()
                entries.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        excess = sum(size for _, size, _ in entries) - self._limit * 7 // 8
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def disk_cache() -> DiskCache | None:
    """Return the cache in the folder that the environment names, if any.

    Raises:
        ConfigError: when folder or size are not valid.
    """
    folder = os.environ.get(CACHE, "")
    return _opened(folder, os.environ.get(SIZE, _GIGABYTES)) if folder else None


def prefix_of(path: Place) -> str:
    """Return what the names of an object's entries start with."""
    return sha256(str(path).encode()).hexdigest()[:32]


def forget(path: Place) -> None:
    """Delete what is cached of an object whose content is damaged."""
    if entries := disk_cache():
        entries.forget(prefix_of(path))


@cache
def _opened(folder: str, gigabytes: str) -> DiskCache:
    try:
        limit = int(float(gigabytes) * 1e9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise ConfigError(f"{SIZE}: expected a positive number of gigabytes, got {gigabytes!r}")
    return DiskCache(local_path(folder).absolute() / "featuremaps-objects", limit)


@cache
def _log_once(folder: Path, cause: str) -> None:
    log.warning("%s: %s cannot be written (%s); continuing without caching", CACHE, folder, cause)
