"""Open an archive: complete, packed into one file, or the finished shards of one."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.completion import Complete
from pipeline.archive.format.index import Index
from pipeline.archive.format.manifest import Manifest, missing_shards
from pipeline.archive.format.shard_check import check_footer
from pipeline.archive.reading.shards import Shards, open_shards
from pipeline.common.errors import ArchiveError
from pipeline.common.places import Place, first_missing


class OpenedArchive(NamedTuple):
    """The parts of an archive; `check`: whether checksums are compared on reading."""

    path: Place
    manifest: Manifest
    complete: Complete
    shards: Shards
    tables: Index
    check: bool


def open_complete(folder: Place, *, named_as: object, check: bool) -> OpenedArchive:
    """Open the folder of a complete archive; `named_as` is the path to name in a message."""
    try:
        manifest = Manifest.read(folder)
    except ArchiveError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        archives = [str(archive) for archive in schema.archives_of(folder) if archive != folder]
        if archives:
            raise ArchiveError(
                f"{named_as}: the folder of a sweep; choose one of {', '.join(archives)}"
            ) from None
        raise
    complete = Complete.read(folder)
    path = folder / schema.INDEX
    if first_missing([path]):
        raise ArchiveError(f"{path}: missing; run: featuremaps stitch {shlex.quote(str(folder))}")
    if complete.fingerprint != manifest.fingerprint:
        raise ArchiveError(f"{folder}: {schema.COMPLETE} belongs to another archive")
    files = [schema.shard_path(folder, number) for number in range(len(manifest.shards))]
    if shard := first_missing(files):
        raise ArchiveError(f"{shard}: missing; run the same extraction again to rewrite it")
    digests = {name.rpartition("/")[2]: digest for name, digest in complete.files.items()}
    shards = open_shards(files, manifest, digests, check=check)
    index = _index(path, manifest, digests.get(schema.INDEX, ""), check)
    return OpenedArchive(folder, manifest, complete, shards, index, check)


def open_packed(path: Place, *, check: bool) -> OpenedArchive:
    """Open a packed file."""
    file = ArchiveFile(path)
    if "manifest" not in file.footer.texts:
        raise ArchiveError(f"{path}: a part of an archive; give the folder of the whole archive")
    columns = file.columns()
    ids, digest = columns["id"], file.footer.digest
    text = file.text("manifest")
    manifest = replace(
        Manifest.from_json(text, where=path, ids=False),
        samples=ids, shards=[(0, len(ids))], previous_fingerprints=(),
    )  # fmt: skip
    complete = Complete(
        fingerprint=manifest.fingerprint,
        samples=len(ids),
        skipped=columns["status"].count(schema.STATUS_SKIPPED),
        shards=1,
        bytes=file.size,
        files={},
    )
    check_footer(path, file.footer, manifest, 0, len(ids))
    shards = open_shards([path], manifest, {path.name: digest}, check=check)
    index = _index(path, manifest, digest, check)
    return OpenedArchive(path, manifest, complete, shards, index, check)


def open_finished(folder: Place) -> OpenedArchive:
    """Open the finished shards of an archive, with checks."""
    manifest = Manifest.read(folder)
    missing = set(missing_shards(folder, manifest))
    finished = [number for number in range(len(manifest.shards)) if number not in missing]
    if not finished:
        raise ArchiveError(f"{folder}: no shard is finished yet; wait for the first one")
    some = manifest.with_shards(finished)
    paths = [schema.shard_path(folder, number) for number in finished]
    shards = open_shards(paths, some, {}, check=True)
    files = [shards.file(number) for number in range(len(finished))]
    index = Index(some, lambda: files, merged=True)
    complete = Complete(
        fingerprint=some.fingerprint,
        samples=len(some.samples),
        skipped=index.columns["status"].count(schema.STATUS_SKIPPED),
        shards=len(finished),
        bytes=sum(file.size for file in files),
        files={},
    )
    return OpenedArchive(folder, some, complete, shards, index, True)


def _index(path: Place, manifest: Manifest, digest: str, check: bool) -> Index:
    return Index(manifest, partial(_open, path, digest, check), merged=False)


def _open(path: Place, digest: str, check: bool) -> Sequence[ArchiveFile]:
    return [ArchiveFile(path, check=check, digest=digest)]
