"""What codecs cost and save: writing, reading and size, side by side in one run.

    uv run python scripts/codec_costs.py

The same activations (of resnet18 over generated photos: dense, and after a ReLU sparse) are written
as raw bytes, with each codec as the archive does, and through the same filters inside HDF5's lock;
every file is synced, then read back whole and compared. Medians of interleaved rounds, each from a
quiet disk. `--gigabytes` of the same values over and over, raw and without a codec, show what a
large file takes: checksums are most of a small file's cost, and little of a large one's.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import torch
from measuring import clock, medians, parser_of
from photos import write_photos
from PIL import Image
from torchvision.models import resnet18

from pipeline.archive.format.codec import Codec, ready
from pipeline.archive.format.tree import create_rows
from pipeline.archive.writing.row_writer import RowWriter
from pipeline.capture.hooks import capture

LAYERS = {"dense": "layer1.0.conv1", "sparse": "layer1"}
ROWS = 8


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    options = parser.parse_args()
    if options.quick:
        options.images, options.rounds, options.gigabytes = 2, 1, 0.002
    ready(get_args(Codec))
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        arrays = activations(Path(scratch) / "photos", options.images)
        results = {
            kind: measure(values, Path(scratch), options.rounds) for kind, values in arrays.items()
        }
        large = measure_large(arrays["dense"], Path(scratch), options.gigabytes, options.rounds)
    if options.json:
        print(json.dumps(results | {"large": large}, indent=1))
        return
    for kind, ways in results.items():
        print(f"\n{kind} ({arrays[kind].nbytes / 1e6:.0f} MB)")
        print(f"{'':24} {'write':>8} {'/ raw':>8} {'read':>8} {'size':>8}")
        for way, figures in ways.items():
            print(
                f"{way:24} {figures['write']:7.2f}s {figures['write'] / ways['raw']['write']:8.2f} "
                f"{figures['read']:7.2f}s {figures['size']:8.2f}"
            )
    print(f"\n{options.gigabytes} GB: raw {large['raw']:.2f} s, none {large['none']:.2f} s, "
          f"{large['none'] / large['raw']:.2f} x")  # fmt: skip


def activations(folder: Path, images: int) -> dict[str, np.ndarray]:
    """Return kind → `(sample, channel, height, width)` float32."""
    write_photos(folder, images)
    pixels = [
        np.asarray(Image.open(path).convert("RGB").resize((224, 224)))
        for path in sorted(folder.iterdir())
    ]
    torch.manual_seed(0)
    model = resnet18().eval()
    parts: dict[str, list[np.ndarray]] = {kind: [] for kind in LAYERS}
    with torch.no_grad(), capture(model, list(LAYERS.values())) as captured:
        for start in range(0, images, ROWS):
            batch = torch.from_numpy(np.stack(pixels[start : start + ROWS])).permute(0, 3, 1, 2)
            model(batch / 127.5 - 1)
            for kind, layer in LAYERS.items():
                parts[kind].append(captured[layer].numpy().copy())
    return {kind: np.concatenate(rows) for kind, rows in parts.items()}


def measure(values: np.ndarray, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return way → seconds to write and read, and the size as a share of the raw bytes."""
    path = folder / "file"
    ways: dict[str, Callable[[], None]] = {"raw": lambda: write_raw(path, values)}
    for codec in get_args(Codec):
        ways[f"{codec}"] = lambda codec=codec: write_hdf5(path, values, codec)  # type: ignore[misc]
        if codec != "none":
            ways[f"{codec} inside HDF5"] = lambda codec=codec: write_hdf5(  # type: ignore[misc]
                path, values, codec, in_hdf5=True
            )
    times: dict[str, dict[str, list[float]]] = {way: {"write": [], "read": []} for way in ways}
    size = {}
    for _ in range(rounds):
        for way, work in ways.items():
            times[way]["write"].append(clock_write(path, work))
            size[way] = path.stat().st_size / values.nbytes
            times[way]["read"].append(clock(lambda way=way: check(path, values, way)))  # type: ignore[misc]
    return {
        way: {name: statistics.median(seconds) for name, seconds in results.items()}
        | {"size": size[way]}
        for way, results in times.items()
    }


def measure_large(
    values: np.ndarray, folder: Path, gigabytes: float, rounds: int
) -> dict[str, float]:
    """Return way → seconds to write and sync the same values again and again."""
    path = folder / "file"
    times = max(1, round(gigabytes * 1e9 / values.nbytes))
    ways = {
        "raw": lambda: write_raw(path, values, times),
        "none": lambda: write_hdf5(path, values, "none", times=times),
    }
    return medians(ways, rounds, lambda work: clock_write(path, work))


def write_raw(path: Path, values: np.ndarray, times: int = 1) -> None:
    """Write the bytes as they are, and sync them."""
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            for start in range(0, len(values), ROWS):
                file.write(values[start : start + ROWS].data)
        os.fsync(file.fileno())


def write_hdf5(
    path: Path, values: np.ndarray, codec: Codec, *, in_hdf5: bool = False, times: int = 1
) -> None:
    """Write as the archive does, or (`in_hdf5`) with HDF5's own filters, and sync."""
    shape, name = (times * len(values), *values.shape[1:]), "/data/activation"
    with h5py.File(path, "w") as file:
        group = file.create_group("data")
        axes = ("channel", "height", "width")
        data = create_rows(group, "activation", shape, values.dtype.str, axes, codec=codec)
        group.create_dataset("checksum", shape=shape[:1], dtype="uint64")
        writer = RowWriter(path, file, {name: codec})
        for start in range(0, len(values) * times, ROWS):
            at = start % len(values)
            rows = values[at : at + ROWS]
            if in_hdf5:
                data[start : start + len(rows)] = rows
            else:
                writer.write(start, {name: rows})
        writer.finish()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check(path: Path, values: np.ndarray, way: str) -> None:
    """Read a file whole and compare it with what was written."""
    if way == "raw":
        read: Any = np.fromfile(path, values.dtype).reshape(values.shape)
    else:
        with h5py.File(path) as file:
            read = file["data/activation"][:]
    assert np.array_equal(read, values)


def clock_write(path: Path, work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes to write a new `path` on a quiet disk."""
    path.unlink(missing_ok=True)
    os.sync()
    return clock(work)


if __name__ == "__main__":
    main()
