"""Growth: what an archive's manifest becomes when the same extraction is asked for more, or anew.

A manifest never changes while shards depend on it. Where none is finished, another may take its
place; where the dataset has grown at its end, the finished shards stay and further ones follow, or
do not: then the command of before ends the archive where it had ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.archive import schema
from pipeline.archive.manifest import Manifest, missing_shards, shard_ranges
from pipeline.archive.sameness import refuse_differences
from pipeline.foundation.atomic_files import sync_folder, write_bytes

log = logging.getLogger(__name__)


def followed(
    archive: Path,
    stored: Manifest,
    wanted: Manifest,
    first_samples: Callable[[int], Mapping[str, Any]],
) -> Manifest:
    """Return the manifest to go on with, written down if it is another; the caller holds the lock
    of the whole archive.

    Args:
        archive: its folder.
        stored: the manifest that is there.
        wanted: that of the extraction that is asked for.
        first_samples: count → what `wanted.identity["dataset"]` would be for the first samples.

    Raises:
        ConfigError: when the dataset has grown, and something else differs as well.
    """
    if stored.fingerprint == wanted.fingerprint:
        return stored
    if len(missing_shards(archive, stored)) == len(stored.shards):
        log.info("archive: no shard was finished with the old configuration; starting over")
        _replace(archive, wanted)
        return wanted
    for number, (fingerprint, size) in enumerate(stored.previous_fingerprints):
        if fingerprint == wanted.fingerprint and _ends_with(archive, stored, size):
            log.info("archive: nothing was added to its first %d samples; it ends with them", size)
            ended = replace(
                wanted,
                shards=[(start, stop) for start, stop in stored.shards if stop <= size],
                previous_fingerprints=stored.previous_fingerprints[:number],
            )
            _replace(archive, ended)
            return ended
    count = len(stored.samples)
    if count >= len(wanted.samples) or list(wanted.samples[:count]) != list(stored.samples):
        return stored
    before = {**wanted.identity, "dataset": first_samples(count)}
    refuse_differences(archive, stored, replace(wanted, identity=before))
    grown = _grown(stored, wanted)
    log.info("archive: %d samples are there, %d follow", count, len(wanted.samples) - count)
    _replace(archive, grown)
    return grown


def _ends_with(archive: Path, stored: Manifest, size: int) -> bool:
    """Tell whether no shard after the first so many samples is finished."""
    missing = set(missing_shards(archive, stored))
    after = {number for number, (start, _) in enumerate(stored.shards) if start >= size}
    return after <= missing


def _grown(stored: Manifest, wanted: Manifest) -> Manifest:
    """Return the manifest with the shards that are there, and further ones of the same size."""
    count, batch = len(stored.samples), stored.identity["batch_size"]
    more = len(wanted.samples) - count
    largest = max(stop - start for start, stop in wanted.shards)
    following = shard_ranges(more, batch, -(-more // largest))
    return replace(
        wanted,
        identity={**wanted.identity, "batch_size": batch},
        shards=[*stored.shards, *((count + start, count + stop) for start, stop in following)],
        previous_fingerprints=[*stored.previous_fingerprints, (stored.fingerprint, count)],
    )


def _replace(archive: Path, manifest: Manifest) -> None:
    """Write another manifest; the archive is not complete from here on."""
    (archive / schema.COMPLETE).unlink(missing_ok=True)
    sync_folder(archive)
    write_bytes(archive / schema.MANIFEST, manifest.to_json().encode())
