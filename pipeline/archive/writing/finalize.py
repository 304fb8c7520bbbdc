"""Completion of an archive from finished shards: index, errors.jsonl and COMPLETE.json."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial

import h5py

from pipeline.archive.format import schema, tree
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.completion import Complete, file_digest
from pipeline.archive.format.index import Index
from pipeline.archive.format.manifest import JPEG, Manifest, missing_shards
from pipeline.archive.format.shard_check import check_finished
from pipeline.archive.writing.footer_writer import write_footer
from pipeline.common.atomic_files import replacing, write_bytes
from pipeline.common.errors import ArchiveError, one_line
from pipeline.common.places import Place, local, mapped


def stitch(archive: Place, *, checked: Mapping[int, ArchiveFile] | None = None) -> Complete:
    """Complete an archive whose shards are all finished; the caller holds its lock.

    Args:
        archive: the folder.
        checked: shards that this process has just written or checked; all others are read.
    """
    manifest = Manifest.read(archive)
    missing = missing_shards(archive, manifest)
    if missing:
        raise ArchiveError(
            f"{archive}: shards are missing ({len(missing)} of {len(manifest.shards)}), first "
            f"{missing[0]:05d} (from row {manifest.shards[missing[0]][0]}); run the extraction "
            "again to write them"
        )
    unchecked = [n for n in range(len(manifest.shards)) if n not in (checked or {})]
    of_others = mapped(
        lambda number: check_finished(archive, manifest, number), unchecked, at=archive
    )
    files = {**(checked or {}), **dict(zip(unchecked, of_others, strict=True))}
    shards = [files[number] for number in range(len(manifest.shards))]
    index = Index(manifest, lambda: shards, merged=True)
    _write_index(archive, manifest, index, shards)
    table = index.columns
    skipped = [
        {"index": i, "id": table["id"][i], "path": table["path"][i],
         "error": one_line(table["error"][i])}
        for i, status in enumerate(table["status"])
        if status == schema.STATUS_SKIPPED
    ]  # fmt: skip
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in skipped)
    write_bytes(archive / schema.ERRORS, lines.encode())
    tables = [schema.MANIFEST, schema.INDEX, schema.ERRORS]
    digests = dict(
        zip(tables, mapped(partial(file_digest, archive), tables, at=archive), strict=True)
    )
    of_shards = {f"{schema.SHARDS}/{shard.path.name}": shard.footer.digest for shard in shards}
    complete = Complete(
        fingerprint=manifest.fingerprint,
        samples=len(manifest.samples),
        skipped=len(skipped),
        shards=len(shards),
        bytes=sum(shard.size for shard in shards)
        + sum(mapped(lambda name: (archive / name).stat().st_size, tables, at=archive)),
        files={schema.MANIFEST: digests.pop(schema.MANIFEST), **of_shards, **digests},
        pixels_sha256=hashlib.sha256("".join(table["pixels_sha256"]).encode()).hexdigest(),
    )
    complete.write(archive)
    if local(archive):  # left by killed processes
        for leftover in archive.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    return complete


def _write_index(
    archive: Place, manifest: Manifest, index: Index, shards: Sequence[ArchiveFile]
) -> None:
    rounding: dict[str, float] = {}
    filters = index.filters()
    with replacing(archive / schema.INDEX) as temporary, h5py.File(temporary, "w") as file:
        tree.write_tree(file, manifest, 0, len(manifest.samples), virtual=True)
        tree.write_samples(file, index.columns)
        if manifest.inputs == JPEG:
            tree.write_jpeg_index(file, [shard.table(schema.JPEG_OFFSETS) for shard in shards])
        for layer in manifest.layers:
            error = index.rounding(layer)
            tree.write_figures(file, layer.name, index.statistics(layer), error)
            if error is not None:
                rounding[layer.name] = error
        tree.write_filters(file, filters)
        write_footer(
            temporary, file, codecs={}, texts=index.columns, filters=filters, rounding=rounding
        )
