"""Safety: the one way to open an HDF5 file of an archive, which may come from elsewhere.

An HDF5 file can point at other files (external links, external storage, virtual sources), inside
itself (soft links), nest groups without end, and declare sizes that no memory holds. Nothing of
that is ever followed. And HDF5's own code crashes on some damaged or crafted structures: so it is a
process that may die which reads and checks a file's structure first (`pipeline.archive.probe`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from pipeline.archive.probe import probe
from pipeline.archive.seal import check_header, is_sealed, read_seal
from pipeline.foundation.errors import ArchiveError, FeaturemapsError, one_line


def open_safely(path: Path, *, virtual: bool = False, own: bool = False) -> h5py.File:
    """Open an HDF5 file read-only after its structure was checked.

    Args:
        path: the file.
        virtual: whether its datasets may be virtual, over `shards/NNNNN.h5` beside it.
        own: whether this process has just written or checked it; its structure is known then.

    Raises:
        ArchiveError: naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: missing, or not a regular file")
    if not own:
        if is_sealed(path):
            check_header(path, read_seal(path))
        probe(path, virtual=virtual)
    with damage_named(f"{path}: cannot be read as HDF5"):
        return h5py.File(path, "r")


@contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Turn whatever HDF5 raises on damaged content into one line that begins with `what`.

    Raises:
        ArchiveError: when the block fails for a reason that is not one of ours.
    """
    try:
        yield
    except FeaturemapsError:
        raise
    except Exception as error:
        # OSError, RuntimeError, KeyError, ValueError, TypeError, SystemError, UnicodeDecodeError,
        # MemoryError, OverflowError: all seen on files with a few bytes changed.
        raise ArchiveError(f"{what} ({one_line(error, limit=200)})") from error
