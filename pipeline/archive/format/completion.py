"""COMPLETE.json: what a finished archive consists of, with a digest of every file; written last."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.common.atomic_files import file_sha256, write_json
from pipeline.common.errors import ArchiveError


@dataclass(frozen=True, kw_only=True)
class Complete:
    """The content of COMPLETE.json.

    Attributes:
        fingerprint: the manifest's.
        samples, skipped, shards: counts.
        bytes: of all files.
        files: path within the archive → digest of an HDF5 file's footer, sha256 of other files.
        pixels_sha256: over the sha256 of every sample's stored pixels, in order; empty for packed
            and partial archives.
    """

    fingerprint: str
    samples: int
    skipped: int
    shards: int
    bytes: int
    files: Mapping[str, str]
    pixels_sha256: str = ""

    def write(self, archive: Path) -> None:
        """Write it, durably and whole or not at all."""
        head = {"format": schema.FORMAT, "format_version": schema.FORMAT_VERSION}
        write_json(archive / schema.COMPLETE, head | asdict(self))

    @classmethod
    def read(cls, archive: Path) -> Self:
        """Read that of an archive.

        Raises:
            ArchiveError: when the archive is not complete, or the file is damaged.
        """
        path = archive / schema.COMPLETE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = cls(
                fingerprint=str(content["fingerprint"]),
                files={str(name): str(digest) for name, digest in content["files"].items()},
                pixels_sha256=str(content["pixels_sha256"]),
                **{name: int(content[name]) for name in ("samples", "skipped", "shards", "bytes")},
            )
        except FileNotFoundError:
            raise ArchiveError(
                f"{archive}: not complete ({schema.COMPLETE} is not there); {_remedy(archive)}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArchiveError(f"{path}: damaged ({type(error).__name__}: {error})") from error
        return found


def file_digest(archive: Path, name: str) -> str:
    """Return the digest by which COMPLETE.json knows a file: of its footer, or its sha256."""
    path = archive / name
    return ArchiveFile(path).footer.digest if path.suffix == ".h5" else file_sha256(path)


def stitched(archive: Path) -> Complete | None:
    """Return what completed an archive if it describes the files that are there, else None."""
    try:
        complete = Complete.read(archive)
        same = all(file_digest(archive, name) == of for name, of in complete.files.items())
    except (OSError, ArchiveError):
        return None
    return complete if same else None


def _remedy(archive: Path) -> str:
    """Return what completes an archive: its last step where every shard is there."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((archive / schema.MANIFEST).read_text(encoding="utf-8"))
        if all(schema.shard_path(archive, i).is_file() for i in range(len(manifest["shards"]))):
            command = f"featuremaps stitch {shlex.quote(str(archive))}"
            return f"every shard is there; run: {command}"
    return (
        "run the same extraction again to finish it (render.partial=true draws what there is), or "
        f"`featuremaps info {shlex.quote(str(archive))}` to see what is there"
    )
