"""What an extraction costs on a GPU: its stages, and the whole against the slowest part.

    uv run python scripts/gpu_report.py [--seconds 60] [--gigabytes 5] [--only TEXT] [--quick]

resnet50 (four stages) and vit_b_16 (twelve blocks) in float32 and bfloat16; whole activations, and
the usual reductions of them. The first table shows the GPU's stages in images/s, each with the ones
before it: the forward pass alone, with hooks, reduction, statistics, and copies to the host, which
is all that an extraction does there; "kept" is the last of them over the first.

The second table shows whole extractions. Reduced ones run for `--seconds` over hard links to 1024
photos; whole activations are written up to `--gigabytes`, and compared with writing and syncing
the same bytes. "overlap" is the slowest part's time over the whole: 1 at best. A second extraction
must give the same bits; that of whole activations is profiled: how long the device computed and
copied, and which part of the copies went on while it computed. `--folder` says where to write,
`--only` takes cases whose name contains a text. `--quick` runs small on any device.
"""

import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import torch
from measuring import clock, parser_of, write_synced
from photos import write_photos
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pipeline import Archive, Extraction, FlatFolder, LayerSelector, TorchvisionModel
from pipeline.archive.format.schema import CHECKSUM, layer_group
from pipeline.capture.hooks import capture, copied
from pipeline.capture.hooks import forward as run_forward
from pipeline.common.progress import table
from pipeline.extraction.buffers import Buffers, new_pool
from pipeline.extraction.devices import reproducible
from pipeline.extraction.extract import batch_ranges, extract, load
from pipeline.extraction.loader import Batch, Loader
from pipeline.extraction.measurements import Measurements
from pipeline.extraction.memory_format import channels_last
from pipeline.extraction.plan import Plan, make_plan
from pipeline.extraction.reductions.base import NoReduction, Reduction
from pipeline.extraction.reductions.pooling import SpatialMean
from pipeline.extraction.reductions.subsets import ClsToken, RandomPositions
from pipeline.extraction.replicas import ModelReplicas
from pipeline.extraction.settings import Precision

STAGES = ("layer1", "layer2", "layer3", "layer4")
BLOCKS = tuple(f"encoder.layers.encoder_layer_{i}" for i in range(12))


class Case(NamedTuple):
    """A model, its layers and their reduction."""

    name: str
    model: str
    layers: tuple[str, ...]
    reduction: Reduction


CASES = [
    Case("resnet50", "resnet50", STAGES, NoReduction()),
    Case("resnet50 spatial_mean", "resnet50", STAGES, SpatialMean()),
    Case("vit_b_16", "vit_b_16", BLOCKS, NoReduction()),
    Case("vit_b_16 cls_token", "vit_b_16", BLOCKS, ClsToken()),
    Case("vit_b_16 positions=16", "vit_b_16", BLOCKS, RandomPositions(count=16)),
]
QUICK = [
    Case("resnet18", "resnet18", STAGES[::3], NoReduction()),
    Case("resnet18 spatial_mean", "resnet18", STAGES[::3], SpatialMean()),
]


def wait(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(
    run: Callable[[Iterator[Batch]], None], plan: Plan, decoded: list[Batch], seconds: float
) -> float:
    """Return the images/s of something that runs batches, for some seconds after a warm-up."""
    full = [batch for batch in decoded if len(batch.errors) == plan.batch_size] or decoded
    run(itertools.islice(itertools.cycle(full), 1 if seconds < 1 else 4))
    wait(plan.traced.device)
    start, images = time.perf_counter(), 0

    def batches() -> Iterator[Batch]:
        nonlocal images
        for batch in itertools.cycle(full):
            images += len(batch.errors)
            yield batch
            if time.perf_counter() - start > seconds:
                return

    run(batches())
    wait(plan.traced.device)
    return images / (time.perf_counter() - start)


def stages(
    config: Extraction, plan: Plan, decoded: list[Batch], seconds: float
) -> dict[str, float]:
    """Return the images/s of the forward pass alone, and with each further stage."""
    device, transform = plan.traced.device, plan.traced.model.transform
    module, layers = plan.traced.model.module, {layer.name: layer for layer in plan.layers}
    short = config.precision != "float32"
    dtype = getattr(torch, str(config.precision))
    good = torch.ones(plan.batch_size, dtype=torch.bool).numpy()
    buffers = Buffers(device, plan.batch_size, new_pool(1))
    buffers.next_set()

    def forward(batch: Batch) -> None:
        images = transform.normalize(batch.pixels.to(device, non_blocking=True))
        if plan.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(device.type, dtype=dtype) if short else nullcontext()
        with torch.inference_mode(), autocast:
            run_forward(module, images)

    def reduced(name: str, output: torch.Tensor) -> torch.Tensor:
        reduction = config.reduction.of_layer(name).for_rows(0)
        return copied(reduction(layers[name].rows(output), layers[name].axes), torch.float32)

    def forwards(batches: Iterator[Batch]) -> None:
        for batch in batches:
            forward(batch)

    def statistics(batches: Iterator[Batch]) -> None:
        for batch in batches:
            forward(batch)
            measurements = Measurements(config, buffers, batch.start, good[: len(batch.errors)])
            for entry in plan.manifest.layers:
                measurements.start(entry, activations[entry.name])

    def complete(batches: Iterator[Batch]) -> None:
        previous = None
        for rows in itertools.chain(replicas.run(batches), [None]):
            if previous is not None:  # while the next batch is computed, as in an extraction
                previous.arrived()
                previous.release()
            previous = rows

    figures = {}
    with ExitStack() as stack:
        if plan.channels_last:
            stack.enter_context(channels_last(module))
        figures["forward"] = rate(forwards, plan, decoded, seconds)
        with capture(module, [*layers]):
            figures["+ hooks"] = rate(forwards, plan, decoded, seconds)
        with capture(module, [*layers], process=reduced) as activations:
            figures["+ reduction"] = rate(forwards, plan, decoded, seconds)
            figures["+ statistics"] = rate(statistics, plan, decoded, seconds)
    with ModelReplicas(plan) as replicas:
        figures["+ copies"] = rate(complete, plan, decoded, seconds)
    return figures


def decode(plan: Plan) -> list[Batch]:
    """Decode every image; return the batches."""
    manifest = plan.manifest
    ranges = batch_ranges(manifest, range(len(manifest.shards)), plan.batch_size)
    with load(plan, ranges) as batches:
        return list(batches)


def linked(photos: Path, folder: Path, count: int) -> Path:
    """Return a folder with `count` hard links to photos."""
    folder.mkdir()
    files = itertools.cycle(sorted(photos.iterdir()))
    for i, file in zip(range(count), files, strict=False):
        os.link(file, folder / f"{i:06d}.jpg")
    return folder


def measure(
    case: Case, precision: Precision, photos: Path, folder: Path, options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a row of each table for one case."""
    config = Extraction(
        model=TorchvisionModel(name=case.model, weights=None),
        dataset=FlatFolder(root=str(photos)), layers=LayerSelector(include=case.layers),
        reduction=case.reduction, precision=precision, archive=str(folder / "archive"),
        loader=Loader(decoder=options.decoder),
    )  # fmt: skip
    pooled = not isinstance(case.reduction, NoReduction)
    short = 0.1 if options.quick else min(5.0, options.seconds)
    with reproducible(0):
        plan = make_plan(config)
        seconds = clock(lambda: decode(plan))
        decoded = decode(plan)
        parts = stages(config, plan, decoded, short)
    row_bytes = 4 * sum(math.prod(entry.shape) for entry in plan.manifest.layers)
    slowest = {"decode": len(plan.images.samples) / seconds, "GPU": parts["+ copies"]}
    if pooled:
        images = max(1, int(min(slowest.values()) * (1 if options.quick else options.seconds)))
    else:
        images = min(len(plan.images.samples), max(1, int(1e9 * options.gigabytes / row_bytes)))
        seconds = clock(lambda: write_synced(folder / "raw", images * row_bytes))
        (folder / "raw").unlink()
        slowest["disk"] = images / seconds
    root = linked(photos, folder / "links", images)
    config = replace(config, dataset=FlatFolder(root=str(root)))
    again = replace(config, archive=f"{config.archive}-again")
    made = extract(config)
    kind = ProfilerActivity.CUDA if plan.traced.device.type == "cuda" else ProfilerActivity.CPU
    with nullcontext() if pooled else profile(activities=[kind], acc_events=True) as profiled:
        extract(again)
    archives = [Path(str(one.archive)) for one in (config, again)]
    same = same_bits(*archives)
    for path in (*archives, root):
        shutil.rmtree(path)
    name = f"{case.name} {precision}"
    limit = min(slowest, key=lambda key: slowest[key])
    kept = parts["+ copies"] / parts["forward"]
    return (
        {"case": name, "batch": plan.batch_size, **parts, "kept": kept},
        {
            "case": name, "images": images, "s": made.seconds, "images/s": images / made.seconds,
            **{part: slowest.get(part, "-") for part in ("decode", "GPU", "disk")},
            "slowest": limit, "overlap": images / made.seconds / slowest[limit],
            "GB/s": images * row_bytes / made.seconds / 1e9, **activity(profiled),
            "same bits again": str(same),
        },
    )  # fmt: skip


def same_bits(one: Path, two: Path) -> bool:
    """Return whether two archives hold the same activations, by the checksums of their rows."""
    sums = []
    for folder in (one, two):
        with Archive.open(folder) as archive:
            paths = [f"{layer_group(layer)}/{CHECKSUM}" for layer in archive.layers]
        files = sorted((folder / "shards").glob("*.h5"))
        checksums = []
        for file in files:
            with h5py.File(file) as shard:
                checksums += [shard[path][:].tobytes() for path in paths]
        sums.append(checksums)
    return sums[0] == sums[1]


def activity(profiled: Any) -> dict[str, float]:
    """Return how long a device computed and copied to the host, in seconds, and which part of the
    copies went beside computing.
    """
    computing, copying = [], []
    for event in profiled.events() if profiled else ():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kind = copying if "memcpy dtoh" in event.name.lower() else computing
            kind.append((event.time_range.start / 1e6, event.time_range.end / 1e6))
    both, computed, copied = (
        sum(stop - start for start, stop in union(spans))
        for spans in (computing + copying, computing, copying)
    )
    overlap = (computed + copied - both) / copied if copied else 0.0
    return {"computing, s": computed, "copying, s": copied, "copies beside computing": overlap}


def union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return what several spans of time cover together."""
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--decoder", default="pillow", choices=("pillow", "turbo", "cuda"))
    options = parser.parse_args()
    precisions = ["float32"] if options.quick else ["float32", "bfloat16"]
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        photos = write_photos(Path(scratch) / "photos", 4 if options.quick else 1024)
        for case in QUICK if options.quick else CASES:
            for precision in precisions:
                if options.only in f"{case.name} {precision}":
                    results += [measure(case, precision, photos, Path(scratch), options)]
                    sys.stderr.write(f"{json.dumps(results[-1])}\n")
    what = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    if options.json:
        cases = [whole | stage for stage, whole in results]
        sys.stdout.write(json.dumps({"device": what, "cases": cases}, indent=1) + "\n")
        return
    sys.stdout.write(f"{what}\n")
    for rows in zip(*results, strict=True):
        cells = [[x if isinstance(x, str) else f"{x:.3g}" for x in row.values()] for row in rows]
        sys.stdout.write(f"\n{table(list(rows[0]), cells)}")


if __name__ == "__main__":
    main()
