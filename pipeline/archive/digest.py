"""Digests of shards: checked before HDF5 touches a file.

HDF5 cannot be trusted with a damaged file: on one whose tail is zeros (a power failure, a bad copy)
it loops for ever while it reads an attribute. So every shard has its sha256 beside it, in the
format of `sha256sum`, written before the shard gets its name.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.archive import schema
from pipeline.errors import ArchiveError
from pipeline.foundation.atomic_files import file_sha256, write_bytes


def digest_path(shard: Path) -> Path:
    """Return the path of a shard's digest."""
    return shard.with_name(shard.name + schema.DIGEST_ENDING)


def write_digest(shard: Path, digest: str) -> None:
    """Write a shard's digest, whole or not at all."""
    write_bytes(digest_path(shard), f"{digest}  {shard.name}\n".encode())


def read_digest(shard: Path) -> str:
    """Return the sha256 that stands beside a shard."""
    return digest_path(shard).read_text(encoding="ascii").split()[0]


def check_digest(shard: Path) -> str:
    """Return a finished shard's sha256 after comparing it with the one beside it.

    Raises:
        ArchiveError: when they differ, or either file cannot be read.
    """
    try:
        expected = read_digest(shard)
        found = file_sha256(shard)
    except (OSError, ValueError, IndexError) as error:
        raise ArchiveError(
            f"{shard}: damaged shard, its sha256 cannot be checked ({error})"
        ) from error
    if found != expected:
        raise ArchiveError(
            f"{shard}: damaged shard, its content is not what was written (sha256); "
            "delete it and run the extraction again to make it anew"
        )
    return found
