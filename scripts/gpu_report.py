"""What an extraction costs on a GPU, against the slowest of the parts that it cannot avoid.

    uv run python scripts/gpu_report.py [--images 512] [--quick] [--json]

Models with what people keep of them (resnet50's stages, vgg16's convolutions, vit_b_16's blocks),
in float32 and bfloat16. Alone: the forward pass under hooks, decoding, copies to the host, and
writing and syncing the same bytes. The slowest of them is what a perfect pipeline would take;
`overlap` is that over the whole extraction, 1 at best. The profile says how much of the time the
device computed and copied. `--quick` runs small on any device, to show that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos import write_photos
from torch.profiler import ProfilerActivity, profile

from pipeline import Extraction, FlatFolder, LayerSelector, Loader, TorchvisionModel
from pipeline.extraction.devices import choose_device, reproducible
from pipeline.extraction.extract import batch_ranges, extract
from pipeline.extraction.plan import Plan, make_plan
from pipeline.extraction.replicas import ModelReplicas
from pipeline.extraction.settings import Precision
from pipeline.foundation.progress import table
from pipeline.inputs.loading import batches

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


def write(folder: Path, total: int) -> None:
    """Write and sync as many bytes."""
    block = np.random.default_rng(0).bytes(32 * 2**20)
    with (folder / "raw").open("wb", buffering=0) as file:
        for start in range(0, total, len(block)):
            file.write(memoryview(block)[: total - start])
        os.fsync(file.fileno())
    (folder / "raw").unlink()


def measure(
    name: str, layers: tuple[str, ...], precision: Precision, photos: Path, folder: Path
) -> dict[str, Any]:
    """Return the seconds of one case, the whole and its parts."""
    config = Extraction(
        model=TorchvisionModel(name=name, weights=None), dataset=FlatFolder(root=str(photos)),
        layers=LayerSelector(include=layers), loader=Loader(), precision=precision,
        archive=str(folder / f"{name}-{precision}"),
    )  # fmt: skip
    device = choose_device(config.device)
    with reproducible(0):
        plan = make_plan(config)
        images = decode(config, plan)
        forward(config, plan, images[:2])  # warm
        seconds = {"decode": synced(device, lambda: decode(config, plan))}
        total = 0

        def run() -> None:
            nonlocal total
            total = forward(config, plan, images)

        seconds["forward"] = synced(device, run)
        seconds["to the host"] = synced(device, lambda: to_host(device, total))
        seconds["disk"] = synced(device, lambda: write(folder, total))
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as profiled:
        made = extract(config)
    events = profiled.key_averages()
    busy = sum(event.self_device_time_total for event in events) / 1e6
    copies = sum(e.self_device_time_total for e in events if "memcpy" in e.key.lower()) / 1e6
    count = len(plan.images.samples)
    slowest = max(seconds, key=lambda key: seconds[key])
    return {
        "model": name, "precision": str(precision), "images/s": count / made.seconds,
        **{f"{part}, images/s": count / taken for part, taken in seconds.items()},
        "slowest": slowest, "overlap": seconds[slowest] / made.seconds,
        "device computes": (busy - copies) / made.seconds, "device copies": copies / made.seconds,
        "GB/s": total / made.seconds / 1e9,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cases, precisions = (QUICK, [Precision.FLOAT32]) if options.quick else (CASES, [
        Precision.FLOAT32, Precision.BFLOAT16,
    ])  # fmt: skip
    found = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        photos = write_photos(Path(scratch) / "photos", 4 if options.quick else options.images)
        for name, layers in cases.items():
            for precision in precisions:
                found += [measure(name, layers, precision, photos, Path(scratch))]
    device = choose_device("auto")
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    if options.json:
        sys.stdout.write(json.dumps({"device": what, "cases": found}, indent=1) + "\n")
        return
    rows = [[one[k] if isinstance(one[k], str) else f"{one[k]:.3g}" for k in one] for one in found]
    sys.stdout.write(f"{what}\n" + table(list(found[0]), rows))


if __name__ == "__main__":
    main()
