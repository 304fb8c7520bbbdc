"""Resume: may an extraction continue an archive that an earlier one has begun, and as what?

Only if it would have made the same: from the same images, by a model that does the same. On one
machine that means the same bits. Another machine, or another version of a library, rounds
differently: there values may differ by `TOLERANCE` and pixels by `_ROUNDED_LEVELS`, with a warning.

A manifest never changes while shards depend on it. Where no shard is finished, another replaces it;
where the dataset has grown at its end, the finished shards stay and further ones follow.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.manifest import (
    FULL,
    Manifest,
    differences,
    missing_shards,
    shard_ranges,
)
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import sync_folder, write_bytes
from pipeline.common.errors import ConfigError

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Of a layer's largest magnitude."""
_ROUNDED_LEVELS = 2  # what versions of a JPEG decoder differ by
_COMPARED_SHARDS = 4

_COMPARED_APART = ("behaviour", "versions", "on_error", "batch_size", "format_version")
"""How errors are met changes no value; what it has left out is looked for in the shards. An archive
keeps its own batch size, and may hold shards of several versions."""


def resumed(
    archive: Path,
    stored: Manifest,
    wanted: Manifest,
    first_samples: Callable[[int], Mapping[str, Any]],
) -> Manifest:
    """Return the manifest to continue with, and write it if it is new; the caller holds the lock
    of the whole archive.

    Args:
        archive: its folder.
        stored: its manifest.
        wanted: that of the new extraction.
        first_samples: count → what `wanted.identity["dataset"]` would be for the first samples.

    Raises:
        ConfigError: when the dataset has grown, and something else differs as well.
    """
    if stored.fingerprint == wanted.fingerprint:
        return stored
    missing = set(missing_shards(archive, stored))
    if len(missing) == len(stored.shards):
        log.info("archive: no shard was finished with the old configuration; starting over")
        return _replaced(archive, wanted)
    for number, (fingerprint, size) in enumerate(stored.previous_fingerprints):
        added = {i for i, (start, _) in enumerate(stored.shards) if start >= size}
        if fingerprint == wanted.fingerprint and added <= missing:
            log.info("archive: nothing was added to its first %d samples; it ends with them", size)
            shards = [(start, stop) for start, stop in stored.shards if stop <= size]
            previous = stored.previous_fingerprints[:number]
            return _replaced(
                archive, replace(wanted, shards=shards, previous_fingerprints=previous)
            )
    count, more = len(stored.samples), len(wanted.samples) - len(stored.samples)
    if more <= 0 or list(wanted.samples[:count]) != list(stored.samples):
        return stored
    before = {**wanted.identity, "dataset": first_samples(count)}
    refuse_other_identity(archive, stored, replace(wanted, identity=before))
    log.info("archive: %d samples are there, %d follow", count, more)
    batch_size = stored.identity["batch_size"]
    largest = max(stop - start for start, stop in wanted.shards)
    following = shard_ranges(more, batch_size, -(-more // largest))
    grown = replace(
        wanted,
        identity={**wanted.identity, "batch_size": batch_size},
        shards=[*stored.shards, *((count + start, count + stop) for start, stop in following)],
        previous_fingerprints=[*stored.previous_fingerprints, (stored.fingerprint, count)],
    )
    return _replaced(archive, grown)


def refuse_other_identity(archive: Path, stored: Manifest, wanted: Manifest) -> None:
    """Refuse to continue an archive that was made with something else.

    Raises:
        ConfigError: listing what differs.
    """
    if stored.fingerprint == wanted.fingerprint:
        return
    before, now = (
        {key: value for key, value in manifest.identity.items() if key not in _COMPARED_APART}
        for manifest in (stored, wanted)
    )
    lines = differences(before, now) or _changed_layers(archive, stored, wanted)
    if lines:
        shown = "; ".join(lines[:6]) + (f"; and {len(lines) - 6} more" if len(lines) > 6 else "")
        raise ConfigError(
            f"archive: {archive} was made differently and cannot be continued (there → now): "
            f"{shown}. Give another archive=, or the configuration that it was made with"
        )


def refuse_other_pixels(
    archive: Path,
    stored: Manifest,
    wanted: Manifest,
    shards: Mapping[int, ArchiveFile],
    decode: Callable[[int], Array],
) -> None:
    """Refuse to continue an archive whose images are other ones now.

    The first image of some finished shards is decoded again. This notices a source that has no
    digest of its content, and a decoder that has changed.

    Args:
        archive: its folder.
        stored, wanted: its manifest, and that of the new extraction.
        shards: number → finished shard.
        decode: row → uint8 pixels `(channel, height, width)`.

    Raises:
        ConfigError: naming the sample.
    """
    exact = _same_machine(stored, wanted)
    for number in [*shards][:: max(1, len(shards) // _COMPARED_SHARDS)]:
        shard, start = shards[number], stored.shards[number][0]
        status = shard.text("status")
        if schema.STATUS_STORED not in status:
            continue
        first = status.index(schema.STATUS_STORED)
        row, now = start + first, decode(start + first)
        digest = hashlib.sha256(np.ascontiguousarray(now).data).hexdigest()
        if digest == shard.text("pixels_sha256")[first]:
            continue
        if stored.inputs != FULL and not exact:
            log.warning(
                "archive: sample %d now decodes to other pixels; the archive does not hold the "
                "exact ones (storage.inputs=%s), which would tell by how much",
                row, stored.inputs,
            )  # fmt: skip
            continue
        levels = 256  # also where pixels cannot be compared
        if stored.inputs == FULL and now.shape == stored.image_shape:
            before = np.empty((1, *stored.image_shape), np.uint8)
            shard.rows(schema.IMAGE_ROWS, start).read(first, before)
            levels = int(np.abs(now.astype(int) - before[0]).max(initial=0))
        if exact or levels > _ROUNDED_LEVELS:
            raise ConfigError(
                f"archive: {archive} was made from other images: sample {row} "
                f"({stored.samples[row]}) now decodes to different pixels. Give another archive="
            )
        log.warning("archive: images are decoded to pixels up to %d levels off here", levels)


def _changed_layers(archive: Path, stored: Manifest, wanted: Manifest) -> list[str]:
    """Return that layers return other values now, and which versions differ, as lines; warn of
    differences within rounding.
    """
    before, now = stored.identity["behaviour"], wanted.identity["behaviour"]
    versions = _other_versions(stored, wanted)
    changed = [name for name in now if before.get(name, {}).get("sha256") != now[name]["sha256"]]
    if changed and not _same_machine(stored, wanted):
        changed = [name for name in changed if _apart(before.get(name), now[name]) > TOLERANCE]
        if not changed:
            worst = max(_apart(before[name], now[name]) for name in now)
            log.warning(
                "archive: %s was made %s; the model's activations differ by rounding there and "
                "here (up to %.1e of a layer's largest value)", archive,
                f"with other versions ({'; '.join(versions)})" if versions else "elsewhere", worst,
            )  # fmt: skip
    elif versions and not changed:
        log.warning("archive: %s was made with other versions (%s); the model returns the same",
                    archive, "; ".join(versions))  # fmt: skip
    if not changed:
        return []
    first = changed[0] + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
    line = f"model: {first} returns other values for the same image; its code has changed"
    return [line, *versions]


def _same_machine(stored: Manifest, wanted: Manifest) -> bool:
    """Return whether two runs must agree bit for bit: one processor, the same versions."""
    return (
        wanted.identity.get("device") == "cpu"
        and stored.environment.get("device") == wanted.environment.get("device")
        and not _other_versions(stored, wanted)
    )


def _other_versions(stored: Manifest, wanted: Manifest) -> list[str]:
    before, now = stored.identity.get("versions", {}), wanted.identity.get("versions", {})
    return differences(before, {name: now.get(name) for name in before}, "versions")


def _apart(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> float:
    """Return the largest difference of two descriptions of a layer, by its largest magnitude."""
    if before is None or len(before["values"]) != len(now["values"]):
        return float("inf")
    pairs = [
        *zip(before["values"], now["values"], strict=True),
        *((before[name], now[name]) for name in ("largest", "mean", "std")),
    ]
    scale = max(before["largest"], now["largest"])
    return max(abs(one - other) for one, other in pairs) / scale if scale else 0.0


def _replaced(archive: Path, manifest: Manifest) -> Manifest:
    """Write another manifest and return it; the archive is not complete from here on."""
    (archive / schema.COMPLETE).unlink(missing_ok=True)
    sync_folder(archive)
    write_bytes(archive / schema.MANIFEST, manifest.to_json().encode())
    return manifest
