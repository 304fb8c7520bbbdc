"""Copying of complete archives between folders and object stores, resumable and checked."""

import shutil
from pathlib import Path

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.completion import Complete, file_digest
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.shard_check import check_shard
from pipeline.archive.writing import lock
from pipeline.archive.writing.shard_writer import remove_leftovers
from pipeline.common import object_store
from pipeline.common.atomic_files import file_sha256, replacing, write_bytes
from pipeline.common.errors import ArchiveError, ConfigError
from pipeline.common.object_path import ObjectPath
from pipeline.common.places import Place, local, refuse_read_only
from pipeline.common.progress import Progress


def copy(source: Place, out: Place) -> Complete:
    """Copy an archive; files that `out` has already are kept, all others are read and checked.

    Args:
        source: a complete archive.
        out: new folder or prefix, or one that an interrupted copy left.

    Raises:
        ArchiveError: when the archive is not complete, or a copied file is damaged.
        ConfigError: when `out` holds something else, or cannot be written.
    """
    if source.is_file():
        raise ConfigError(f"{source}: is a packed file, not a folder; copy it with any tool")
    refuse_read_only(out)
    manifest, complete = Manifest.read(source), Complete.read(source)
    if (out / schema.MANIFEST).is_file():
        if Manifest.read(out).fingerprint != manifest.fingerprint:
            raise ConfigError(f"{out}: holds another archive; use another destination")
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out}: holds other files; use an empty or new folder")
    (out / schema.SHARDS).mkdir(parents=True, exist_ok=True)
    with lock.writing(out), Progress("copy", len(complete.files), unit="files") as progress:
        remove_leftovers(out, range(len(manifest.shards)))
        for name, digest in complete.files.items():
            target = out / name
            if not target.is_file() or file_digest(out, name) != digest:
                _copy_file(source / name, target, manifest, digest)
            progress.advance(1, nbytes=target.stat().st_size)
        write_bytes(out / schema.COMPLETE, (source / schema.COMPLETE).read_bytes())
    return complete


def _copy_file(source: Place, target: Place, manifest: Manifest, digest: str) -> None:
    file = local(source)
    if file and isinstance(target, ObjectPath):
        _check(file, source, manifest, digest)
        target.upload(file)
        return
    if file:
        file.open("rb").close()  # its errors name the source, those below the target
    with replacing(target) as temporary:
        if isinstance(source, ObjectPath):
            object_store.download(source, temporary)
        else:
            shutil.copyfile(source, temporary)
        try:
            _check(temporary, source, manifest, digest)
        except ArchiveError as error:
            raise ArchiveError(str(error).replace(str(temporary), str(source))) from error


def _check(file: Path, source: Place, manifest: Manifest, digest: str) -> None:
    """Check a copied file whole: its digest in COMPLETE.json, and every row of a shard."""
    if source.suffix == ".h5":
        opened = ArchiveFile(file)
        opened.check_header()
        actual = opened.footer.digest
        if source.parent.name == schema.SHARDS:
            check_shard(file, manifest, *manifest.shards[int(source.stem)])
    else:
        actual = file_sha256(file)
    if actual != digest:
        raise ArchiveError(
            f"{source}: changed or damaged (its digest differs from {schema.COMPLETE})"
        )
