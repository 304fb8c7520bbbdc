"""Digests of shards: compared before HDF5 touches a file.

A shard's seal has the digest of its tables and structure. Those of version 1 have no seal but their
sha256 beside them, in the format of `sha256sum`.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.archive import schema
from pipeline.archive.seal import check_header, is_sealed, read_seal
from pipeline.foundation.atomic_files import file_sha256
from pipeline.foundation.errors import ArchiveError


def digest_path(shard: Path) -> Path:
    """Return the path of the digest of a shard of version 1."""
    return shard.with_name(shard.name + schema.DIGEST_ENDING)


def is_version_1(shard: Path) -> bool:
    """Tell whether a shard is one of version 1, which has no seal."""
    return digest_path(shard).exists() and not is_sealed(shard)


def read_digest(shard: Path) -> str:
    """Return a shard's digest as it was noted: `xxh3-128:…` of its seal, or its sha256."""
    if not is_version_1(shard):
        return read_seal(shard).digest
    return digest_path(shard).read_text(encoding="ascii").split()[0]


def check_digest(shard: Path) -> str:
    """Return a finished shard's digest after comparing what it covers: everything that is not rows,
    or in version 1 the whole file.

    Raises:
        ArchiveError: when it is not what was written, or cannot be read.
    """
    if not is_version_1(shard):
        seal = read_seal(shard)
        check_header(shard, seal)
        return seal.digest
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
