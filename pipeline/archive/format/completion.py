"""COMPLETE.json: the completion record with a digest of every file; it is written last."""

import contextlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.manifest import Manifest, missing_shards
from pipeline.common.atomic_files import file_sha256, write_json
from pipeline.common.errors import ArchiveError
from pipeline.common.places import Place


@dataclass(frozen=True, kw_only=True)
class Complete:
    """The content of COMPLETE.json.

    Attributes:
        fingerprint: of the manifest.
        samples, skipped, shards: counts.
        bytes: total size of all files.
        files: path within the archive → digest of an HDF5 file's footer, sha256 of other files.
        pixels_sha256: digest of the sha256 of all samples' stored pixels, in row order; empty for
            packed and partial archives.
    """

    fingerprint: str
    samples: int
    skipped: int
    shards: int
    bytes: int
    files: Mapping[str, str]
    pixels_sha256: str = ""

    def write(self, archive: Place) -> None:
        """Write the record atomically and durably."""
        head = {"format": schema.FORMAT, "format_version": schema.FORMAT_VERSION}
        write_json(archive / schema.COMPLETE, head | asdict(self))

    @classmethod
    def read(cls, archive: Place) -> Self:
        """Read the record of an archive."""
        path = archive / schema.COMPLETE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                fingerprint=str(content["fingerprint"]),
                files={str(name): str(digest) for name, digest in content["files"].items()},
                pixels_sha256=str(content["pixels_sha256"]),
                **{name: int(content[name]) for name in ("samples", "skipped", "shards", "bytes")},
            )
        except (FileNotFoundError, PermissionError) as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
            raise ArchiveError(
                f"{archive}: not complete ({schema.COMPLETE} {why}); {_remedy(archive)}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArchiveError(f"{path}: damaged ({type(error).__name__}: {error})") from error


def file_digest(archive: Place, name: str) -> str:
    """Return a file's digest as in COMPLETE.json: the footer's digest, or the file's sha256."""
    path = archive / name
    return ArchiveFile(path).footer.digest if path.suffix == ".h5" else file_sha256(path)


def stitched(archive: Place) -> Complete | None:
    """Return the completion record if it matches the files on disk, else None."""
    try:
        complete = Complete.read(archive)
        matches = all(
            file_digest(archive, name) == digest for name, digest in complete.files.items()
        )
    except (OSError, ArchiveError):
        return None
    return complete if matches else None


def _remedy(archive: Place) -> str:
    """Return how to complete an archive: the last step if all shards are finished."""
    with contextlib.suppress(ArchiveError):
        if not missing_shards(archive, Manifest.read(archive)):
            command = f"featuremaps stitch {shlex.quote(str(archive))}"
            return f"all shards are finished; run: {command}"
    return (
        "run the same extraction again to finish it, set render.partial=true to render the "
        f"finished shards, or run `featuremaps info {shlex.quote(str(archive))}` to inspect it"
    )
