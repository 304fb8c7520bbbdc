"""What an extraction of 10⁶ or 10⁹ images would take, in time, bytes and files; and what breaks.

Measures on this machine the cost per image (a small extraction), the size per image, and stitching
and opening against the number of shards; then does the arithmetic. Prints the measurements and one
table of predictions:

    uv run python scripts/scaling.py --workers 8

It simulates; nothing of the predicted size is written. Throughput is taken to grow with workers up
to `--disk` MB/s of the shared disk.
"""

import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from measuring import clock, parser_of

from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.schema import shard_path
from pipeline.archive.reading.archive import Archive
from pipeline.archive.writing.finalize import stitch
from pipeline.capture.selector import LayerSelector
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.reductions.base import NoReduction, Reduction
from pipeline.extraction.reductions.pooling import SpatialMean
from pipeline.extraction.settings import Extraction, Precision, Storage
from pipeline.models.tiny import TinyModel
from pipeline.models.torchvision import TorchvisionModel

LAYERS = ("layer1", "layer2", "layer3", "layer4")
KINDS: dict[str, tuple[Reduction, Precision]] = {
    "whole maps, float32": (NoReduction(), "float32"),
    "whole maps, float16": (NoReduction(), "float16"),
    "spatial means": (SpatialMean(), "float32"),
}
MOST_SHARDS = 256
COMFORTABLE_SHARD = 64e9
"""Bytes: beyond it, what a killed job loses, and a single file's copy, become hours of work."""


def main() -> None:
    parser = parser_of(__doc__, "tiny, to see that it runs")
    parser.add_argument("--images", type=int, default=96, help="that are really extracted")
    parser.add_argument("--workers", type=int, default=8, help="machines like this one")
    parser.add_argument("--disk", type=float, default=2000, help="MB/s that all of them share")
    options = parser.parse_args()
    images = 4 if options.quick else options.images
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        cost(folder / "cost", 4, *KINDS["spatial means"])  # imports, first allocations
        costs = {name: cost(folder / "cost", images, *kind) for name, kind in KINDS.items()}
        shards = stitching(folder / "stitch", (2, 4) if options.quick else (16, 64, 256))
        samples = opening(folder / "open", (8, 16) if options.quick else (2000, 20_000))
    predicted = [
        predict(total, name, per_image, options.workers, options.disk * 1e6, shards, samples)
        for total in (10**6, 10**9)
        for name, per_image in costs.items()
    ]
    if options.json:
        results = {"costs": costs, "stitching": shards, "opening": samples, "predicted": predicted}
        print(json.dumps(results, indent=1))
        return
    for name, per_image in costs.items():
        rate, size = 1 / per_image["seconds"], per_image["bytes"] / 1e3
        print(f"{name:22} {rate:7.1f} images/s  {size:9.1f} kB/image")
    for count, seconds in shards.items():
        print(f"stitching {count:>4} shards: {seconds * 1e3:.0f} ms")
    for count, seconds in samples.items():
        print(f"opening {count:>6} samples: {seconds * 1e3:.0f} ms")
    for row in predicted:
        print("\n" + "\n".join(f"{key:24} {value}" for key, value in row.items()))


def cost(folder: Path, images: int, reduction: Reduction, dtype: Precision) -> dict[str, float]:
    """Return seconds and bytes per image, without what one run costs once."""
    times = []
    for count in (max(1, images // 4), images):
        shutil.rmtree(folder, ignore_errors=True)
        config = Extraction(
            model=TorchvisionModel(name="resnet18", weights=None),
            dataset=Synthetic(samples=count, height=256, width=256),
            layers=LayerSelector(include=LAYERS),
            reduction=reduction,
            storage=Storage(dtype=dtype),
            archive=str(folder / "archive"),
            device="cpu",
        )
        times.append((count, clock(partial(extract, config))))
    with Archive.open(folder / "archive") as archive:
        nbytes = float(archive.complete.bytes) / images
    (few, short), (many, long) = times
    return {"seconds": max(1e-4, (long - short) / (many - few)), "bytes": nbytes}


def stitching(folder: Path, counts: tuple[int, ...]) -> dict[int, float]:
    """Return number of shards → seconds to join them (they have just been written and checked)."""
    results = {}
    for count in counts:
        path = folder / str(count)
        extract(small(path, count, shard_samples=1))
        shards = len(Manifest.read(path).shards)
        files = {i: ArchiveFile(shard_path(path, i)) for i in range(shards)}
        results[shards] = clock(partial(stitch, path, checked=files))
    return results


def opening(folder: Path, counts: tuple[int, ...]) -> dict[int, float]:
    """Return number of samples → seconds until an archive is open."""
    results = {}
    for count in counts:
        extract(small(folder / str(count), count, shard_samples=None))
        start = time.perf_counter()
        with Archive.open(folder / str(count)) as archive:
            assert len(archive) == count
        results[count] = time.perf_counter() - start
    return results


def small(path: Path, samples: int, *, shard_samples: int | None) -> Extraction:
    """Return an extraction that costs next to nothing."""
    return Extraction(
        model=TinyModel(),
        dataset=Synthetic(samples=samples, height=16, width=16),
        layers=LayerSelector(include=("conv1",)),
        reduction=SpatialMean(),
        loader=Loader(batch_size=1 if shard_samples else 64),
        storage=Storage(shard_samples=shard_samples),
        archive=str(path),
        device="cpu",
    )


def predict(
    total: int,
    kind: str,
    per_image: dict[str, float],
    workers: int,
    disk: float,
    shards: dict[int, float],
    samples: dict[int, float],
) -> dict[str, Any]:
    """Return the estimated cost of `total` images of one kind, and the first limit reached."""
    computing = total * per_image["seconds"] / workers
    writing = total * per_image["bytes"] / disk
    shard = total * per_image["bytes"] / MOST_SHARDS
    (few, short), (many, long) = min(samples.items()), max(samples.items())
    each_sample = max(0.0, (long - short) / (many - few))
    stitch_seconds = max(shards.values()) + total * each_sample
    open_seconds = short + total * each_sample
    trouble = []
    if writing > computing:
        trouble.append("the disk is the limit, not the workers: reduce, or store float16")
    if shard > COMFORTABLE_SHARD:
        trouble.append(f"shards of {shard / 1e9:.0f} GB: divide the dataset into several archives")
    if open_seconds > 30:
        trouble.append("the sample table takes this long to read: divide the dataset")
    return {
        "images": f"{total:.0e}, {kind}",
        "days": f"{max(computing, writing) / 86_400:.2f} with {workers} workers",
        "terabytes": f"{total * per_image['bytes'] / 1e12:.2f}",
        "files": str(2 * MOST_SHARDS + 5),
        "GB a shard": f"{shard / 1e9:.2f}",
        "stitching, s": f"{stitch_seconds:.1f} (and reading every byte, if other jobs wrote them)",
        "opening, s": f"{open_seconds:.1f}",
        "breaks": "; ".join(trouble) or "nothing",
    }


if __name__ == "__main__":
    main()
