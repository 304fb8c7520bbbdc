"""Partial archives: what is finished of an extraction, as an archive that can be drawn."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

from pipeline.archive import schema
from pipeline.archive.digest import check_digest, digest_path
from pipeline.archive.manifest import Manifest
from pipeline.archive.reader import Archive
from pipeline.archive.stitch import missing_shards, stitch
from pipeline.foundation.errors import ArchiveError


@contextmanager
def finished_part(path: Path) -> Iterator[Archive]:
    """Open the finished shards of an archive that is still being written, or never was finished.

    Nothing in its folder is touched. The model's name says how much there is. Samples of missing
    shards are not there; the others keep their rows as long as the shards before theirs are done.

    Raises:
        ArchiveError: when there is no archive, no shard is finished, or one is damaged.
    """
    folder = schema.archive_folder(path)
    manifest = Manifest.read(folder)
    missing = set(missing_shards(folder, manifest))
    done = [number for number in range(len(manifest.shards)) if number not in missing]
    if not done:
        raise ArchiveError(f"{folder}: no shard is finished yet; there is nothing to draw")
    ranges = [manifest.shards[number] for number in done]
    edges = list(accumulate((stop - start for start, stop in ranges), initial=0))
    model = dict(manifest.config["model"])
    there = f"{edges[-1]} of {len(manifest.samples)} samples"
    model["name"] = f"{manifest.model_name} (partial: {there})"
    part = replace(
        manifest,
        config={**manifest.config, "model": model},
        samples=[name for start, stop in ranges for name in manifest.samples[start:stop]],
        shards=list(pairwise(edges)),
        earlier=[
            (of, sum(stop - start for start, stop in ranges if start < count))
            for of, count in manifest.earlier
        ],
    )
    with tempfile.TemporaryDirectory(prefix="featuremaps-partial-") as scratch:
        place = Path(scratch)
        (place / schema.SHARDS).mkdir()
        (place / schema.MANIFEST).write_text(part.to_json(), encoding="utf-8")
        for number, old in enumerate(done):
            shard = schema.shard_path(folder, old).absolute()
            check_digest(shard)
            link = schema.shard_path(place, number)
            link.symlink_to(shard)
            if digest_path(shard).exists():
                digest_path(link).symlink_to(digest_path(shard))
        stitch(place, checked=range(len(done)))  # by their digests, above
        with Archive.open(place) as archive:
            yield archive
