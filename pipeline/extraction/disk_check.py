"""Disk check: estimate the bytes and the time of an extraction before it starts."""

import json
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from pipeline.archive.format import schema
from pipeline.archive.format.jpeg import misfit
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.size_estimate import MARGIN, free_bytes, row_bytes, shard_bytes
from pipeline.common.errors import DoesNotFitError, plural
from pipeline.common.object_store import LARGEST
from pipeline.common.places import Place, uploads
from pipeline.common.progress import duration, size, table
from pipeline.extraction.loader import Batch
from pipeline.extraction.plan import Plan
from pipeline.extraction.replicas import ModelReplicas
from pipeline.models.weights.state_dict import tensors_of

_OPEN_FILES = 256 + 64
_TIMED_BATCHES = 2  # per replica; all but the last are warm-up


def check_fits(archive: Place, manifest: Manifest, shards: list[int]) -> None:
    """Raise DoesNotFitError if the shards do not fit on the disk."""
    if uploads(archive):  # one is uploaded while the next is written
        shards = sorted(shards, key=lambda number: -shard_bytes(manifest, number))[:2]
        if shards and shard_bytes(manifest, shards[0]) > LARGEST:
            raise DoesNotFitError(
                f"{archive}: a shard of {size(shard_bytes(manifest, shards[0]))} is larger than "
                f"one upload ({size(LARGEST)}); set a smaller storage.shard_samples"
            )
    needed = int(_bytes(manifest, shards) * MARGIN)
    free = free_bytes(archive)
    if needed > free:
        smaller = [f"{key} ({size(nbytes * MARGIN)})" for key, nbytes in remedies(manifest, shards)]
        raise DoesNotFitError(
            f"{archive}: about {size(needed)} are needed (including 5 % margin), {size(free)} "
            "are free; free some space, use another archive=, or keep less: "
            f"{', '.join([*smaller, 'fewer layers'])}"
        )


def remedies(manifest: Manifest, shards: Sequence[int]) -> list[tuple[str, int]]:
    """Return overrides that make an archive smaller, with the resulting bytes, smallest first."""
    smaller = ("none",) if misfit(manifest.image_shape) else ("jpeg", "none")
    variants = {f"storage.inputs={kind}": replace(manifest, inputs=kind) for kind in smaller}
    layers = manifest.layers
    variants["storage.dtype=float16"] = replace(
        manifest, layers=[replace(layer, dtype="float16") for layer in layers]
    )
    variants["reduction=spatial_mean"] = replace(
        manifest,
        layers=[
            replace(layer, axes=(schema.CHANNEL,), shape=(layer.channels,)) for layer in layers
        ],
    )
    current = _bytes(manifest, shards)
    sizes = [(key, _bytes(variant, shards)) for key, variant in variants.items()]
    return sorted(((key, nbytes) for key, nbytes in sizes if nbytes < current), key=itemgetter(1))


def _bytes(manifest: Manifest, shards: Iterable[int]) -> int:
    return sum(shard_bytes(manifest, number) for number in shards)


def raise_file_limit() -> int:
    """Raise the soft limit of open files as far as needed and allowed; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 4 * _OPEN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        soft = limit
    return soft


def facts(plan: Plan) -> dict[str, Any]:
    """Return the size, time and memory estimates of a run, for `featuremaps plan`."""
    archive = plan.config.place or Path()
    manifest = plan.manifest
    rows = row_bytes(manifest)
    samples = len(manifest.samples)
    shards = range(len(manifest.shards))
    total = _bytes(manifest, shards)
    state = tensors_of(plan.traced.model.module.state_dict())
    model = sum(tensor.numel() * tensor.element_size() for _, tensor in state)
    free = free_bytes(archive)
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
        "inputs": manifest.inputs,
        "inputs_bytes": rows["inputs"] * samples,
        "total_bytes": total,
        "shards": len(manifest.shards),
        "remedies": [
            {"override": key, "bytes": nbytes} for key, nbytes in remedies(manifest, shards)
        ],
        "batch_size": manifest.batch_size,
        "device": plan.traced.device.type,
        "seconds_per_sample": _seconds_per_sample(plan),
        # One batch is written while the next is computed, which also needs the model's working
        # memory and, for float16, a batch in float32.
        "peak_memory_bytes": model + 4 * plan.batch_size * sum(rows.values()),
        "free_bytes": free,
        "file_limit": limit,
        "fits": total * MARGIN <= free and limit >= min(_OPEN_FILES, len(manifest.shards) + 64),
    }


def _seconds_per_sample(plan: Plan) -> float:
    """Return the seconds per sample of the model, reductions and statistics on all cores."""
    storage = replace(plan.config.storage, dtype="float32")  # noise may overflow float16
    plan = replace(plan, config=replace(plan.config, storage=storage, on_nonfinite="keep"))
    size = plan.batch_size
    noise = torch.randint(
        256, (size, *plan.traced.image_shape), dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with ModelReplicas(plan) as replicas:
        for _ in range(_TIMED_BATCHES):
            start = time.monotonic()
            batches = [Batch(0, noise, [""] * size) for _ in range(replicas.count)]
            for rows in replicas.run(batches):
                rows.arrived()
                rows.release()
            seconds = time.monotonic() - start
    return seconds / (size * replicas.count)


def describe(estimates: Mapping[str, Any], *, as_json: bool) -> str:
    """Return the facts as a table, or as JSON."""
    if as_json:
        return json.dumps(estimates, indent=1) + "\n"
    samples = estimates["samples"]
    rows = [
        (layer["name"], samples, "×".join(map(str, layer["shape"])), layer["dtype"],
         size(layer["bytes"]))
        for layer in estimates["layers"]
    ]  # fmt: skip
    stored = {"none": "not stored", "jpeg": "JPEG, about"}.get(estimates["inputs"], "uint8")
    rows.append(("inputs", samples, "", stored, size(estimates["inputs_bytes"])))
    lines = table(("layer", "samples", "shape", "dtype", "bytes"), rows, right=(1, 4)).splitlines()
    lines += [
        f"archive      {size(estimates['total_bytes'])} in {plural(estimates['shards'], 'shard')}",
        f"batch size   {estimates['batch_size']}",
        f"time         about {duration(estimates['seconds_per_sample'] * samples)} for the model "
        f"on {estimates['device']} (measured with noise); decoding and writing may take longer",
        f"free disk    {size(estimates['free_bytes'])}",
        f"peak memory  about {size(estimates['peak_memory_bytes'])} above the libraries'",
        f"open files   {estimates['file_limit']} allowed",
        "fits" if estimates["fits"] else "DOES NOT FIT",
    ]
    if not estimates["fits"]:
        lines += [
            f"  {remedy['override']:24} {size(remedy['bytes'])}" for remedy in estimates["remedies"]
        ]
        lines.append("  or fewer layers (layers.include), or a reduction for some (per_layer)")
    return "\n".join(lines) + "\n"
