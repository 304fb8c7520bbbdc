"""Open an archive: complete, packed into one file, or the finished shards of one."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import NamedTuple

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.completion import Complete
from pipeline.archive.format.index import FileIndex, Index, ShardIndex, skipped_count
from pipeline.archive.format.manifest import Manifest, missing_shards
from pipeline.archive.format.shard_check import check_footer
from pipeline.archive.reading.remote_shards import open_shards
from pipeline.archive.reading.shards import Shards
from pipeline.common.errors import ArchiveError
from pipeline.common.places import Place, first_missing


class OpenedArchive(NamedTuple):
    """The parts of an archive.

    Attributes:
        path, manifest, complete, shards: of the archive.
        tables: its content apart from the rows.
        check: whether checksums are compared on reading.
    """

    path: Place
    manifest: Manifest
    complete: Complete
    shards: Shards
    tables: Index
    check: bool


def open_complete(folder: Place, *, given: object, check: bool) -> OpenedArchive:
    """Open the folder of a complete archive; `given` is the path to name in a message."""
    try:
        manifest = Manifest.read(folder)
    except ArchiveError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        archives = [str(archive) for archive in schema.archives_of(folder) if archive != folder]
        if archives:
            raise ArchiveError(
                f"{given}: the folder of a sweep; choose one of {', '.join(archives)}"
            ) from None
        raise ArchiveError(
            f"{given}: not an archive ({folder} contains no {schema.MANIFEST})"
        ) from None
    complete = Complete.read(folder)
    index = folder / schema.INDEX
    if first_missing([index]):
        raise ArchiveError(f"{index}: missing; run: featuremaps stitch {shlex.quote(str(folder))}")
    if complete.fingerprint != manifest.fingerprint:
        raise ArchiveError(f"{folder}: {schema.COMPLETE} belongs to another archive")
    shards = [schema.shard_path(folder, number) for number in range(len(manifest.shards))]
    if shard := first_missing(shards):
        raise ArchiveError(f"{shard}: missing; run the same extraction again to rewrite it")
    digests = {name.rpartition("/")[2]: digest for name, digest in complete.files.items()}
    return OpenedArchive(
        folder, manifest, complete,
        open_shards(shards, manifest, digests, check=check),
        FileIndex(index, manifest, digest=digests.get(schema.INDEX, ""), check=check),
        check,
    )  # fmt: skip


def open_packed(path: Place, *, check: bool) -> OpenedArchive:
    """Open a packed file."""
    file = ArchiveFile(path)
    ids = file.text("id")
    manifest = replace(
        Manifest.from_json(file.text("manifest"), where=path),
        samples=ids, shards=[(0, len(ids))], previous_fingerprints=(),
    )  # fmt: skip
    complete = Complete(
        fingerprint=manifest.fingerprint,
        samples=len(ids),
        skipped=sum(file.text("status")),
        shards=1,
        bytes=path.stat().st_size,
        files={},
    )
    check_footer(path, file.footer, manifest, 0, len(ids))
    digest = file.footer.digest
    index = FileIndex(path, manifest, digest=digest, check=check)
    shards = open_shards([path], manifest, {path.name: digest}, check=check)
    return OpenedArchive(path, manifest, complete, shards, index, check)


def open_finished(folder: Place) -> OpenedArchive:
    """Open the finished shards of an archive, with checks."""
    manifest = Manifest.read(folder)
    missing = set(missing_shards(folder, manifest))
    finished = [number for number in range(len(manifest.shards)) if number not in missing]
    if not finished:
        raise ArchiveError(f"{folder}: no shard is finished yet; wait for the first one")
    partial = manifest.with_shards(finished)
    paths = [schema.shard_path(folder, number) for number in finished]
    shards = open_shards(paths, partial, {}, check=True)
    index = ShardIndex([shards.file(number) for number in range(len(finished))], partial)
    samples = index.samples()
    if list(samples.ids) != list(partial.samples):
        raise ArchiveError(f"{folder}: the sample tables do not match the manifest")
    complete = Complete(
        fingerprint=partial.fingerprint,
        samples=len(samples),
        skipped=skipped_count(samples),
        shards=len(finished),
        bytes=sum(path.stat().st_size for path in paths),
        files={},
    )
    return OpenedArchive(folder, partial, complete, shards, index, True)
