"""Fit: what an extraction will write and need, and whether there is room for it."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.archive.capacity import MARGIN, free_bytes, row_bytes, shard_bytes
from pipeline.archive.manifest import Manifest
from pipeline.extraction.plan import Plan
from pipeline.foundation.errors import DoesNotFitError
from pipeline.foundation.progress import size, table

_OPEN_FILES = 256 + 64


def check_fits(archive: Path, manifest: Manifest, shards: list[int]) -> None:
    """Refuse work that the disk cannot take.

    Args:
        archive: where it goes.
        manifest: what it is.
        shards: those still to write.

    Raises:
        DoesNotFitError: when the shards and 5 % more exceed the free space.
    """
    needed = int(sum(shard_bytes(manifest, number) for number in shards) * MARGIN)
    free = free_bytes(archive)
    if needed > free:
        raise DoesNotFitError(
            f"{archive}: about {size(needed)} are needed (5 % spare included), {size(free)} "
            "are free; free some space, give another archive=, or keep less "
            "(reduction=spatial_mean, storage.dtype=float16, fewer layers)"
        )


def raise_file_limit() -> int:
    """Raise the soft limit of open files as far as needed and allowed, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * _OPEN_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    return soft


def facts(plan: Plan, archive: Path | None) -> dict[str, Any]:
    """Return what a run would write and need, for `featuremaps plan`."""
    manifest = plan.manifest
    rows = row_bytes(manifest)
    samples = len(manifest.samples)
    total = sum(shard_bytes(manifest, number) for number in range(len(manifest.shards)))
    model = sum(
        t.numel() * t.element_size() for t in plan.traced.model.module.state_dict().values()
    )
    free = free_bytes(archive or Path())
    limit = raise_file_limit()
    return {
        "samples": samples,
        "layers": [
            {
                "name": layer.name,
                "axes": list(layer.axes),
                "shape": list(layer.shape),
                "dtype": layer.dtype,
                "bytes": rows[layer.name] * samples,
            }
            for layer in manifest.layers
        ],
        "inputs_bytes": rows["inputs"] * samples,
        "total_bytes": total,
        "shards": len(manifest.shards),
        "batch_size": plan.batch_size,
        # One batch is written while the next is made, which also takes the model's own working
        # memory and, for float16, a batch in float32.
        "peak_memory_bytes": model + 4 * plan.batch_size * sum(rows.values()),
        "free_bytes": free,
        "file_limit": limit,
        "fits": total * MARGIN <= free and limit >= min(_OPEN_FILES, len(manifest.shards) + 64),
    }


def describe(found: Mapping[str, Any], *, as_json: bool) -> str:
    """Return the facts as a table for people, or as JSON."""
    if as_json:
        return json.dumps(found, indent=1) + "\n"
    samples = found["samples"]
    rows = [
        (layer["name"], samples, "×".join(map(str, layer["shape"])), layer["dtype"],
         size(layer["bytes"]))
        for layer in found["layers"]
    ]  # fmt: skip
    rows.append(("inputs", samples, "", "uint8", size(found["inputs_bytes"])))
    lines = table(("layer", "samples", "shape", "dtype", "bytes"), rows, right=(1, 4)).splitlines()
    lines += [
        f"archive      {size(found['total_bytes'])} in {found['shards']} shards",
        f"batch size   {found['batch_size']}",
        f"free disk    {size(found['free_bytes'])}",
        f"peak memory  about {size(found['peak_memory_bytes'])} above the libraries'",
        f"open files   {found['file_limit']} allowed",
        "fits" if found["fits"] else "DOES NOT FIT",
    ]
    return "\n".join(lines) + "\n"
