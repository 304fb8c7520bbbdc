"""Verification that an archive is complete, undamaged and in order."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.completion import file_digest
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.manifest import JPEG, Manifest
from pipeline.archive.format.shard_check import check_shard
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.hdf5_check import check_hdf5_view
from pipeline.common.errors import ArchiveError, plural
from pipeline.common.places import Place, local, place
from pipeline.common.progress import size


def verify(path: str | Place) -> dict[str, Any]:
    """Read and check a whole archive, and compare HDF5's view of each file with its footer.

    Returns:
        `path`, `fingerprint`, `samples`, `skipped`, `shards`, `bytes`, `hdf5` (whether HDF5's view
        was compared, which needs local files), `nonfinite` (layer → count).

    Raises:
        ArchiveError: naming the first fault.
    """
    folder = schema.archive_folder(place(path))
    with Archive.open(folder) as archive:
        manifest, complete = archive.manifest, archive.complete
        if folder.is_file():
            packed = ArchiveFile(folder)
            packed.check_header()
            files = [packed]
        else:
            files = _check_files(folder, manifest, complete.files)
        skipped = archive.samples.status.tolist().count(schema.STATUS_SKIPPED)
        if (skipped, len(archive)) != (complete.skipped, complete.samples):
            raise ArchiveError(f"{folder}: the sample table does not match {schema.COMPLETE}")
        nonfinite = {layer.name: _nonfinite(archive, layer) for layer in manifest.layers}
        check_input = archive.jpeg if manifest.inputs == JPEG else archive.image
        for row in range(len(archive)) if archive.has_inputs else ():
            check_input(row)
        if hdf5 := local(folder) is not None:
            check_hdf5_view(files)
    return {
        "path": str(folder),
        "samples": len(manifest.samples),
        "skipped": skipped,
        "shards": len(manifest.shards),
        "bytes": complete.bytes,
        "hdf5": hdf5,
        "nonfinite": nonfinite,
        "fingerprint": manifest.fingerprint,
    }


def _check_files(
    folder: Place, manifest: Manifest, digests: Mapping[str, str]
) -> list[ArchiveFile]:
    """Check every file of an archive's folder; return the HDF5 files."""
    numbers = range(len(manifest.shards))
    paths = [f"{schema.SHARDS}/{schema.shard_path(folder, number).name}" for number in numbers]
    for name in (schema.MANIFEST, *paths, schema.INDEX, schema.ERRORS):
        if name not in digests:
            raise ArchiveError(f"{folder / schema.COMPLETE}: does not list {name}")
        if not (folder / name).is_file():
            raise ArchiveError(f"{folder / name}: missing")
        if file_digest(folder, name) != digests[name]:
            raise ArchiveError(
                f"{folder / name}: changed or damaged (its digest differs from {schema.COMPLETE})"
            )
    index = ArchiveFile(folder / schema.INDEX)
    index.check_header()
    shards = [
        check_shard(schema.shard_path(folder, number), manifest, *rows, rows="none")
        for number, rows in enumerate(manifest.shards)
    ]
    return [index, *shards]


def describe(result: dict[str, Any]) -> str:
    """Return a result of `verify` as text."""
    nonfinite = [f"{name}: {count}" for name, count in result["nonfinite"].items() if count]
    view = "" if result["hdf5"] else "; HDF5's view was not compared, which needs local files"
    return (
        f"{result['path']}: verified; {plural(result['samples'], 'sample')} "
        f"({result['skipped']} skipped), {plural(result['shards'], 'shard')}, "
        f"{size(result['bytes'])}; non-finite values: {', '.join(nonfinite) or 'none'}{view}\n"
    )


def _nonfinite(archive: Archive, layer: LayerEntry) -> int:
    """Return the number of non-finite values of a layer; it must match the statistics."""
    stored = archive.layers[layer.name]
    counted = np.zeros(layer.channels, dtype=np.int64)
    axes = tuple(axis for axis in range(1 + len(layer.shape)) if axis != layer.channel_axis)
    skipped = ~archive.stored
    for start, stop in archive.manifest.blocks(layer.sample_bytes):
        nonfinite = ~np.isfinite(stored[start:stop])
        nonfinite[skipped[start:stop]] = False
        counted += nonfinite.sum(axis=axes)
    if not np.array_equal(counted, stored.statistics["nonfinite_count"]):
        raise ArchiveError(
            f"{archive.path}: {layer.name} has {int(counted.sum())} non-finite values, but its "
            f"statistics count {int(stored.statistics['nonfinite_count'].sum())}"
        )
    return int(counted.sum())
