"""What an extraction costs on a GPU, against the slowest of the parts that it cannot avoid.

    uv run python scripts/gpu_report.py [--images 1024] [--gigabytes 5] [--quick] [--json]

Models with what people keep of them (resnet50's stages, vgg16's convolutions, vit_b_16's blocks),
in float32 and bfloat16, over enough images to fill `--gigabytes`. Alone: the forward pass
under hooks, decoding, copies to the host, and writing and syncing the same bytes. The slowest of
them is what a perfect pipeline would take; `overlap` is that over the whole extraction, 1 at best.
A second extraction is profiled: how long the device computed and copied, and how much of the copies
went on while it computed; it must give the same bits. `--folder` tells where to write (a disk, or a
file system in memory). `--quick` runs small on any device, to show that it runs.
"""

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import torch
from measuring import parser_of, write_synced
from photos import write_photos
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pipeline import Archive, Extraction, FlatFolder, LayerSelector, Loader, TorchvisionModel
from pipeline.archive.format.schema import CHECKSUM, layer_group
from pipeline.common.progress import table
from pipeline.extraction.devices import choose_device, reproducible
from pipeline.extraction.extract import batch_ranges, extract
from pipeline.extraction.loader import batches
from pipeline.extraction.plan import Plan, make_plan
from pipeline.extraction.replicas import ModelReplicas
from pipeline.extraction.settings import Precision

CASES = {
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
    "vgg16": tuple(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
    "vit_b_16": tuple(f"encoder.layers.encoder_layer_{i}" for i in range(12)),
}
QUICK = {"resnet18": ("layer1", "layer4")}


def synced(device: torch.device, work: Callable[[], object]) -> float:
    """Return the seconds of some work, until the device is done."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def decode(config: Extraction, plan: Plan) -> list[Any]:
    """Decode every image; return the batches."""
    manifest = plan.manifest
    ranges = batch_ranges(manifest, range(len(manifest.shards)), plan.batch_size)
    return list(batches(
        plan.images, ranges, loader=config.loader, transform=plan.traced.model.transform,
        shape=plan.traced.image_shape, device=plan.traced.device,
    ))  # fmt: skip


def forward(config: Extraction, plan: Plan, images: list[Any]) -> int:
    """Run hooks, statistics and copies over decoded batches; nothing is written."""
    total = 0
    with ModelReplicas(config, plan) as replicas:
        for rows in replicas.run(iter(images)):
            rows.arrived()
            total += rows.nbytes
            rows.release()
    return total


def to_host(device: torch.device, total: int) -> None:
    """Copy as many bytes to pinned memory."""
    if device.type != "cuda":
        return
    block = torch.empty(64 * 2**20, dtype=torch.uint8, device=device)
    host = torch.empty(64 * 2**20, dtype=torch.uint8, pin_memory=True)
    for _ in range(max(1, total // len(block))):
        host.copy_(block, non_blocking=True)


def measure(
    name: str,
    layers: tuple[str, ...],
    precision: Precision,
    photos: Path,
    folder: Path,
    limit: float,
) -> dict[str, Any]:
    """Return the figures of one case that writes no more than `limit` bytes: the whole and its
    parts.
    """
    config = Extraction(
        model=TorchvisionModel(name=name, weights=None), dataset=FlatFolder(root=str(photos)),
        layers=LayerSelector(include=layers), loader=Loader(), precision=precision,
        archive=str(folder / f"{name}-{precision}"),
    )  # fmt: skip
    device = choose_device(config.device)
    with reproducible(0):
        plan = make_plan(config)
        sample_bytes = 4 * sum(math.prod(layer.shape) for layer in plan.layers)
        images = min(len(plan.images.samples), max(1, int(limit / sample_bytes)))
        config = replace(config, dataset=FlatFolder(root=str(photos), limit=images))
        plan = make_plan(config)
        decoded = decode(config, plan)
        forward(config, plan, decoded[:2])  # warm
        seconds = {"decode": synced(device, lambda: decode(config, plan))}
        total = 0

        def run() -> None:
            nonlocal total
            total = forward(config, plan, decoded)

        seconds["forward"] = synced(device, run)
        seconds["to the host"] = synced(device, lambda: to_host(device, total))
        seconds["disk"] = synced(device, lambda: write_synced(folder / "raw", total))
        (folder / "raw").unlink()
    made = extract(config)
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    again = replace(config, archive=f"{config.archive}-again")
    with profile(activities=[kind], acc_events=True) as profiled:
        extract(again)
    same = same_bits(made.archive, Path(str(again.archive)))
    for archive in (made.archive, Path(str(again.archive))):
        shutil.rmtree(archive)
    count = len(plan.images.samples)
    slowest = max(seconds, key=lambda key: seconds[key])
    return {
        "model": name, "precision": str(precision), "images": count, "batch": plan.batch_size,
        "images/s": count / made.seconds,
        **{f"{part}, images/s": count / taken for part, taken in seconds.items()},
        "slowest": slowest, "overlap": seconds[slowest] / made.seconds, **activity(profiled),
        "GB/s": total / made.seconds / 1e9, "same bits again": same,
    }  # fmt: skip


def same_bits(one: Path, two: Path) -> bool:
    """Tell whether two archives hold the same activations, by the checksums of their rows."""
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
    for event in profiled.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kind = copying if "memcpy dtoh" in event.name.lower() else computing
            kind.append((event.time_range.start / 1e6, event.time_range.end / 1e6))
    computing, copying = union(computing), union(copying)
    both = sum(
        max(0.0, min(stop, end) - max(start, begin))
        for start, stop in copying for begin, end in computing
    )  # fmt: skip
    copied = sum(stop - start for start, stop in copying)
    return {
        "computing, s": sum(stop - start for start, stop in computing),
        "copying, s": copied, "copies beside computing": both / copied if copied else 0.0,
    }  # fmt: skip


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
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    options = parser.parse_args()
    cases, precisions = (QUICK, [Precision.FLOAT32]) if options.quick else (CASES, [
        Precision.FLOAT32, Precision.BFLOAT16,
    ])  # fmt: skip
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        photos = write_photos(Path(scratch) / "photos", 4 if options.quick else options.images)
        limit = 1e9 * options.gigabytes
        for name, layers in cases.items():
            for precision in precisions:
                results += [measure(name, layers, precision, photos, Path(scratch), limit)]
                sys.stderr.write(f"{json.dumps(results[-1])}\n")
    device = choose_device("auto")
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    if options.json:
        sys.stdout.write(json.dumps({"device": what, "cases": results}, indent=1) + "\n")
        return
    rows = [
        [one[k] if isinstance(one[k], str) else f"{one[k]:.3g}" for k in one] for one in results
    ]
    sys.stdout.write(f"{what}\n" + table(list(results[0]), rows))


if __name__ == "__main__":
    main()
