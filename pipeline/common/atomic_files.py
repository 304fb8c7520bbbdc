"""Atomic writes: write a temporary file or folder in the same folder, sync, rename."""

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

from pipeline.common.errors import ArchiveError, DiskFullError, FeaturemapsError, one_line
from pipeline.common.locks import locked
from pipeline.common.object_path import ObjectPath
from pipeline.common.places import Place


def is_disk_full(error: BaseException) -> bool:
    """Return whether `error` or one of its causes is a full disk or an exceeded quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # HDF5 has the system's errno in its text only, NumPy only the number of elements written.
        if re.search("No space left|errno = 28|requested and .* written", str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def write_failures_named(path: Place) -> Iterator[None]:
    """Turn write errors of the file system or HDF5 into one-line errors that name the path."""
    _hide_unwritten_objects()
    try:
        yield
    except FeaturemapsError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"{path}: the disk is full; free some space and run the same command again to "
                "resume (finished data is intact)"
            ) from error
        if isinstance(error, (OSError, RuntimeError)):
            cause = getattr(error, "strerror", None) or one_line(error)
            if "errno = 27" in cause or getattr(error, "errno", 0) == errno.EFBIG:
                cause = (
                    "the file system or `ulimit -f` allows no file of this size; set a smaller "
                    "storage.shard_samples, or use another folder"
                )
            elif match := re.search(r"error message = '([^']+)'", cause):  # of HDF5
                cause = match[1]
            raise ArchiveError(f"{path}: writing failed: {cause}") from error
        raise


@cache
def _hide_unwritten_objects() -> None:
    """Keep h5py from printing a traceback for each object of a file that cannot be written."""

    def filtered(hook: Callable[..., object]) -> Callable[..., None]:
        def call(*report: Any) -> None:
            error = report[1] if len(report) == 3 else report[0].exc_value
            if "Can't decrement id ref count" not in str(error):
                hook(*report)

        return call

    sys.excepthook = filtered(sys.excepthook)  # h5py calls both
    sys.unraisablehook = filtered(sys.unraisablehook)


def file_sha256(path: Place) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(cast(io.BytesIO, file), "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Force a file's content to the disk (HDF5's flush and close do not)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force a folder's entries (a rename, a new file) to the disk; network disks often cannot."""
    try:
        sync_file(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def write_at(descriptor: int, content: memoryview, offset: int) -> None:
    """Write all bytes to a file at an offset."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def host() -> str:
    """Return the host's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9-]", "", socket.gethostname())[:24] or "host"


def temporary_beside(path: Place) -> Path:
    """Return a unique hidden path in the folder of `path`, or in the scratch folder of an object.

    The name has a random part, since containers may share process ids and host names.
    """
    name = f".{path.name}.{host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    if not isinstance(path, ObjectPath):
        return path.with_name(name)
    path.scratch_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path.scratch_folder / name


def commit(temporary: Path, path: Place) -> None:
    """Sync `temporary`, rename it to `path` and sync the folder; or upload it and remove it."""
    if isinstance(path, ObjectPath):
        path.upload(temporary)
        temporary.unlink()
        return
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


@contextmanager
def replacing(path: Place, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` at the end of the block.

    If the block fails, the temporary file is removed and `path` is unchanged. `durable=False` skips
    the syncs, for files that are cheap to recreate.
    """
    temporary = temporary_beside(path)
    try:
        with write_failures_named(path):
            yield temporary
            if durable:
                commit(temporary, path)
            else:
                temporary.replace(str(path))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, or replaces it, at the end of the block.

    If the block fails, the folder is removed, and `path` is unchanged.

    Raises:
        DiskFullError, ArchiveError: see `write_failures_named`.
    """
    temporary = temporary_beside(path)
    try:
        with write_failures_named(path):
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                previous = path.rename(temporary_beside(path))
                temporary.rename(path)
                shutil.rmtree(previous)
            else:
                temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def create(path: Place, content: bytes) -> None:
    """Write a new file atomically unless it exists; exactly one of several processes writes it."""
    if isinstance(path, ObjectPath):
        path.create(content)
        return
    if path.exists():
        return
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        sync_file(temporary)
        _link(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError:  # no hard links, as on exFAT or in mounted buckets
        with locked(path.with_name(f"lock.{path.name}"), wait=True):
            if not path.exists():
                temporary.replace(path)


def write_bytes(path: Place, content: bytes, *, durable: bool = True) -> None:
    """Write `content` to `path`; see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def as_csv(rows: Iterable[Iterable[object]]) -> bytes:
    """Return rows as CSV in UTF-8; None is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")


def write_json(path: Place, content: Any) -> None:
    """Write `content` as indented JSON; see `replacing`."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode("utf-8") + b"\n")


def read_json(path: Place) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if the file is missing or damaged."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}
