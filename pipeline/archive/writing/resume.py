"""Resuming of an existing archive by a new extraction.

The extraction must give the same result: the same images and the same model outputs. On the same
machine they must be bit-identical. Another machine or library version rounds differently: values
may differ by `TOLERANCE` and pixels by `_ROUNDED_LEVELS`, with a warning.

A manifest never changes while shards depend on it. It is replaced if no shard is finished. If
samples were appended to the dataset, the finished shards stay and new ones are added.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.manifest import FULL, Manifest, missing_shards
from pipeline.archive.format.row_ranges import shard_ranges
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import sync_folder, write_bytes
from pipeline.common.differences import differences
from pipeline.common.errors import ConfigError, plural
from pipeline.common.places import Place

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Relative to a layer's largest magnitude."""
_ROUNDED_LEVELS = 2  # difference between versions of a JPEG decoder
_COMPARED_SHARDS = 4

_COMPARED_APART = ("behaviour", "versions", "on_error", "batch_size", "format_version")
"""Not compared as identity: error handling changes no value (skipped samples are compared in the
shards), an archive keeps its batch size, and its shards may be of several versions."""


def resumed(
    archive: Place,
    stored: Manifest,
    requested: Manifest,
    first_samples: Callable[[int], Mapping[str, Any]],
) -> Manifest:
    """Return the manifest to continue with; write it if it is new.

    The caller holds the lock of the whole archive.

    Args:
        archive: its folder.
        stored: manifest of the archive.
        requested: manifest of the new extraction.
        first_samples: count → `wanted.identity["dataset"]` restricted to the first samples.

    Raises:
        ConfigError: when samples were appended to the dataset and something else differs too.
    """
    if stored.fingerprint == requested.fingerprint:
        return stored
    missing = set(missing_shards(archive, stored))
    if len(missing) == len(stored.shards):
        log.info("archive: no shard was finished with the old configuration; starting over")
        return _replaced(archive, requested)
    for number, (fingerprint, size) in enumerate(stored.previous_fingerprints):
        added = {i for i, (start, _) in enumerate(stored.shards) if start >= size}
        if fingerprint == requested.fingerprint and added <= missing:
            log.info("archive: no samples beyond the first %d were written; ending there", size)
            shards = [(start, stop) for start, stop in stored.shards if stop <= size]
            previous = stored.previous_fingerprints[:number]
            return _replaced(
                archive, replace(requested, shards=shards, previous_fingerprints=previous)
            )
    count, added_count = len(stored.samples), len(requested.samples) - len(stored.samples)
    if added_count <= 0 or list(requested.samples[:count]) != list(stored.samples):
        return stored
    before = {**requested.identity, "dataset": first_samples(count)}
    refuse_other_identity(archive, stored, replace(requested, identity=before))
    log.info("archive: appending %s to %d", plural(added_count, "sample"), count)
    batch_size = stored.identity["batch_size"]
    largest = max(stop - start for start, stop in requested.shards)
    new_ranges = shard_ranges(added_count, batch_size, -(-added_count // largest))
    extended = replace(
        requested,
        identity={**requested.identity, "batch_size": batch_size},
        shards=[*stored.shards, *((count + start, count + stop) for start, stop in new_ranges)],
        previous_fingerprints=[*stored.previous_fingerprints, (stored.fingerprint, count)],
    )
    return _replaced(archive, extended)


def refuse_other_identity(archive: Place, stored: Manifest, requested: Manifest) -> None:
    """Check that an archive was made with the same identity.

    Raises:
        ConfigError: listing the differences.
    """
    if stored.fingerprint == requested.fingerprint:
        return
    before, after = (
        {key: value for key, value in manifest.identity.items() if key not in _COMPARED_APART}
        for manifest in (stored, requested)
    )
    lines = differences(before, after) or _changed_layers(archive, stored, requested)
    if lines:
        pairs = enumerate(zip_longest(stored.samples, requested.samples))
        others = (differences(*pair, f"dataset: sample {row}") for row, pair in pairs)
        lines = next(filter(None, others), []) + lines
        text = "; ".join(lines[:6]) + (f"; and {len(lines) - 6} more" if len(lines) > 6 else "")
        raise ConfigError(
            f"archive: {archive} was made with another configuration and cannot be continued "
            f"(archive → now): {text}; set another archive= or use the original configuration"
        )


def refuse_other_pixels(
    archive: Place,
    stored: Manifest,
    requested: Manifest,
    shards: Mapping[int, ArchiveFile],
    decode: Callable[[int], Array],
) -> None:
    """Check that an archive's images still decode to the same pixels.

    The first image of some finished shards is decoded again. This detects changes of sources
    without a content digest, and of the decoder.

    Args:
        archive: its folder.
        stored: manifest of the archive.
        requested: manifest of the new extraction.
        shards: number → finished shard.
        decode: row → uint8 pixels `(channel, height, width)`.

    Raises:
        ConfigError: naming the sample.
    """
    exact = _same_machine(stored, requested)
    for number in [*shards][:: max(1, len(shards) // _COMPARED_SHARDS)]:
        shard, start = shards[number], stored.shards[number][0]
        status = shard.text("status")
        if schema.STATUS_STORED not in status:
            continue
        first = status.index(schema.STATUS_STORED)
        row, pixels = start + first, decode(start + first)
        digest = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
        if digest == shard.text("pixels_sha256")[first]:
            continue
        if stored.inputs != FULL and not exact:
            log.warning(
                "archive: sample %d now decodes to different pixels; the size of the difference is "
                "unknown because the archive does not hold exact pixels (storage.inputs=%s)",
                row, stored.inputs,
            )  # fmt: skip
            continue
        levels = 256  # for pixels that cannot be compared
        if stored.inputs == FULL and pixels.shape == stored.image_shape:
            before = np.empty((1, *stored.image_shape), np.uint8)
            shard.rows(schema.IMAGE_ROWS, start).read(first, before)
            levels = int(np.abs(pixels.astype(int) - before[0]).max(initial=0))
        if exact or levels > _ROUNDED_LEVELS:
            raise ConfigError(
                f"archive: {archive} was made from other images: sample {row} "
                f"({stored.samples[row]}) now decodes to different pixels; set another archive="
            )
        log.warning(
            "archive: decoded pixels differ by up to %s on this machine", plural(levels, "level")
        )


def _changed_layers(archive: Place, stored: Manifest, requested: Manifest) -> list[str]:
    """Return changed layers and versions as lines; log a warning for differences by rounding."""
    before, after = stored.identity["behaviour"], requested.identity["behaviour"]
    versions = _other_versions(stored, requested)
    changed = [
        name for name in after if before.get(name, {}).get("sha256") != after[name]["sha256"]
    ]
    if changed and not _same_machine(stored, requested):
        changed = [name for name in changed if _apart(before.get(name), after[name]) > TOLERANCE]
        if not changed:
            worst = max(_apart(before[name], after[name]) for name in after)
            log.warning(
                "archive: %s was made %s; the model's activations differ by rounding "
                "(up to %.1e of a layer's largest value)", archive,
                f"with other versions ({'; '.join(versions)})" if versions
                else "on another machine", worst,
            )  # fmt: skip
    elif versions and not changed:
        log.warning("archive: %s was made with other versions (%s); the model's activations are "
                    "identical", archive, "; ".join(versions))  # fmt: skip
    if not changed:
        return []
    first = changed[0] + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
    line = f"model: {first} returns different values for the same image; its code has changed"
    return [line, *versions]


def _same_machine(stored: Manifest, requested: Manifest) -> bool:
    """Return whether two runs must be bit-identical: the same CPU and versions."""
    return (
        requested.identity.get("device") == "cpu"
        and stored.environment.get("device") == requested.environment.get("device")
        and not _other_versions(stored, requested)
    )


def _other_versions(stored: Manifest, requested: Manifest) -> list[str]:
    before, after = stored.identity.get("versions", {}), requested.identity.get("versions", {})
    return differences(before, {name: after.get(name) for name in before}, "versions")


def _apart(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> float:
    """Return the largest difference of two layer fingerprints, relative to the magnitude."""
    if before is None or len(before["values"]) != len(after["values"]):
        return float("inf")
    pairs = [
        *zip(before["values"], after["values"], strict=True),
        *((before[name], after[name]) for name in ("largest", "mean", "std")),
    ]
    scale = max(before["largest"], after["largest"])
    return max(abs(a - b) for a, b in pairs) / scale if scale else 0.0


def _replaced(archive: Place, manifest: Manifest) -> Manifest:
    """Replace the manifest and return it; the archive is no longer complete."""
    (archive / schema.COMPLETE).unlink(missing_ok=True)
    sync_folder(Path(str(archive)))
    write_bytes(archive / schema.MANIFEST, manifest.to_json().encode())
    return manifest
