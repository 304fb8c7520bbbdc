"""What reading an archive costs, against `np.memmap`, plain h5py and a `.pt` file per sample.

    uv run python scripts/reading.py [--quick] [--json] [--folder FOLDER]

One layer of float32 maps. Rows and epochs are read from a warm page cache (`cold` after the kernel
was asked to drop the file's pages); everything is measured side by side in one run, in fresh
processes where it says so. Ratios are of rows per second over `np.memmap` doing the same.
"""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from measuring import clock, in_child, parser_of
from synthetic_archive import repeated, write_archive
from torch.utils.data import DataLoader, Dataset

from pipeline.archive.format import schema
from pipeline.archive.reading.archive import Archive
from pipeline.common.progress import table
from pipeline.training.activation_dataset import ActivationDataset
from pipeline.training.activation_loader import ActivationLoader

BATCH = 64
FEW = 512
Times = dict[str, list[float]]


def write_raw(path: Path, samples: int, block: np.ndarray[Any, Any], rows_per_file: int) -> float:
    """Write and sync the same bytes, as many in a file; return seconds."""
    path.mkdir()
    start = time.perf_counter()
    for number, first in enumerate(range(0, samples, rows_per_file)):
        descriptor = os.open(path / f"{number}.raw", os.O_WRONLY | os.O_CREAT)
        for row in range(first, min(first + rows_per_file, samples), len(block)):
            part = block[: min(len(block), samples - row)]
            os.pwrite(descriptor, part.data.cast("B"), (row - first) * block[:1].nbytes)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - start


class Memmap(Dataset[Any]):
    """Rows of a `.npy` file."""

    def __init__(self, path: Path) -> None:
        self.values = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.array(self.values[row])), 0


class Files(Dataset[Any]):
    """A `.pt` file per sample."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.load(self.folder / f"{row}.pt"), 0


def drop(paths: Iterator[Path]) -> None:
    """Ask the kernel to forget the pages of files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def epoch(loader: Any) -> None:
    """Go through a loader once, touching every batch."""
    for batch in loader:
        first = batch[0]
        (first["layer"] if isinstance(first, dict) else first).reshape(-1)[0].item()


def part(what: str, folder: Path) -> float:
    """Return the seconds of a part, in a child process; imports are left out."""
    if what == "first row":

        def read() -> None:
            with Archive.open(folder / "archive") as archive:
                archive.layers["layer"][len(archive) // 2]

        return clock(read)
    if what == "first row memmap":

        def mapped() -> None:
            values = np.load(folder / "rows.npy", mmap_mode="r")
            np.array(values[len(values) // 2])

        return clock(mapped)
    if what == "first epoch blocks":
        loader = ActivationLoader(folder / "archive", "layer", BATCH, memory=2**29)
        return clock(partial(epoch, loader))
    if what == "first epoch":
        data: Any = ActivationDataset(folder / "archive", "layer")
    else:
        data = Memmap(folder / "rows.npy")
    torch.manual_seed(0)
    return clock(lambda: epoch(DataLoader(data, batch_size=BATCH, shuffle=True)))


def prepare(folder: Path, samples: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Write the same rows in every way; return what writing the archive cost."""
    block = np.random.default_rng(0).standard_normal((BATCH, *shape), dtype=np.float32)
    layer = repeated(block)
    ids = [f"{i:08d}" for i in range(samples)]
    shards = min(256, max(1, samples * block[:1].nbytes // (256 * 2**20)))
    total = samples * block[:1].nbytes
    path = folder / "archive"
    ours = clock(lambda: write_archive(path, {"layer": layer}, ids, shards=shards, block=BATCH))
    raw = write_raw(folder / "raw", samples, block, -(-samples // shards))
    shutil.rmtree(folder / "raw")
    values = np.lib.format.open_memmap(
        folder / "rows.npy", "w+", np.dtype("float32"), (samples, *shape)
    )
    (folder / "pt").mkdir()
    with h5py.File(folder / "plain.h5", "w") as file:
        data = file.create_dataset("layer", (samples, *shape), "f4", chunks=(1, *shape))
        for row in range(0, samples, BATCH):
            part = block[: min(BATCH, samples - row)]
            data[row : row + BATCH] = values[row : row + BATCH] = part
    for row in range(min(samples, FEW)):
        torch.save(torch.from_numpy(block[row % BATCH].copy()), folder / "pt" / f"{row}.pt")
    return {"what": "write an archive, GB/s", "featuremaps": total / ours / 1e9,
            "raw pwrite + fsync": total / raw / 1e9, "ratio": raw / ours}  # fmt: skip


def measure_warm(folder: Path, order: np.ndarray[Any, Any], rounds: int) -> Times:
    """Return the seconds of rows and epochs out of the page cache."""
    times: Times = {}
    archive = Archive.open(folder / "archive")
    layer, name = archive.layers["layer"], schema.activation_rows("layer")
    mapped = np.load(folder / "rows.npy", mmap_mode="r")
    plain = h5py.File(folder / "plain.h5")["layer"]
    out = np.empty((BATCH, *layer.shape[1:]), np.float32)

    def random_rows() -> None:
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH].tolist()
            archive.read_into(name, rows, out[: len(rows)])

    def random_memmap() -> None:
        for at in range(0, len(order), BATCH):
            for index, row in enumerate(order[at : at + BATCH]):
                out[index] = mapped[row]

    data: dict[str, Any] = {
        "epoch": ActivationDataset(folder / "archive", "layer"),
        "epoch memmap": Memmap(folder / "rows.npy"),
        "epoch pt": Files(folder / "pt", min(len(layer), FEW)),
    }
    loaders = {
        "blocks": ActivationLoader(folder / "archive", "layer", BATCH, memory=2**29),
        "positions": ActivationLoader(folder / "archive", "layer", BATCH, positions=8),
    }
    works: dict[str, Callable[[], object]] = {
        "random rows": random_rows, "random memmap": random_memmap,
        "one row": lambda: [layer[int(row)][0, 0, 0] for row in order],
        "one row memmap": lambda: [np.array(mapped[row])[0, 0, 0] for row in order],
        "one row h5py": lambda: [plain[int(row)][0, 0, 0] for row in order],
    }  # fmt: skip
    for key, one in data.items():
        works[key] = lambda d=one: epoch(DataLoader(d, batch_size=BATCH, shuffle=True))  # type: ignore[misc]
    works |= {key: partial(epoch, loader) for key, loader in loaders.items()}
    for number in range(rounds + 1):
        for key, work in works.items():
            taken = clock(work)
            if number:  # the first maps the files
                times.setdefault(key, []).append(taken)
    for _ in range(rounds):
        for key in (
            "first row", "first row memmap",
            "first epoch", "first epoch memmap", "first epoch blocks",
        ):  # fmt: skip
            times.setdefault(key, []).append(in_child("--folder", folder, "--part", key))
    archive.close()
    for loader in loaders.values():
        loader.close()
    return times


def measure_cold(folder: Path, rounds: int) -> Times:
    """Return the seconds of epochs over files that the page cache does not hold."""
    times: Times = {}
    shards = sorted((folder / "archive" / "shards").glob("*.h5"))

    def sequential() -> None:
        buffer = bytearray(8 * 2**20)
        for path in shards:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    gc.collect()  # what is mapped stays in the cache
    for _ in range(rounds):
        drop(iter(shards))
        times.setdefault("sequential cold", []).append(clock(sequential))
        drop(iter(shards))
        loader = ActivationLoader(folder / "archive", "layer", BATCH, memory=2**29)
        times.setdefault("blocks cold", []).append(clock(partial(epoch, loader)))
        loader.close()
        del loader
        gc.collect()
    return times


def rows_of_table(times: Times, samples: int, count: int) -> list[dict[str, Any]]:
    """Return what was measured, beside what it is measured against."""
    lines: list[dict[str, Any]] = []
    middle = {name: float(np.median(some)) for name, some in times.items()}
    rates = {name: samples / value for name, value in middle.items()}

    def row(what: str, ours: float, other: float, name: str) -> None:
        lines.append({"what": what, "featuremaps": ours, name: other, "ratio": ours / other})

    lines.append({"what": "open and first row, ms", "featuremaps": 1e3 * middle["first row"],
                  "np.memmap": 1e3 * middle["first row memmap"], "ratio": None})  # fmt: skip
    row("random rows, in batches, rows/s", count / middle["random rows"],
        count / middle["random memmap"], "np.memmap")  # fmt: skip
    row("random rows, one by one, rows/s", count / middle["one row"],
        count / middle["one row memmap"], "np.memmap")  # fmt: skip
    row("the same against plain h5py", count / middle["one row"],
        count / middle["one row h5py"], "plain h5py")  # fmt: skip
    row("shuffled DataLoader, first epoch, rows/s", rates["first epoch"],
        rates["first epoch memmap"], "np.memmap")  # fmt: skip
    row("shuffled DataLoader, later, rows/s", rates["epoch"], rates["epoch memmap"], "np.memmap")
    row(
        "the same against a .pt file per sample",
        rates["epoch"],
        min(samples, FEW) / middle["epoch pt"],
        ".pt",
    )
    row("ActivationLoader, blocks, first epoch, rows/s", rates["first epoch blocks"],
        rates["first epoch memmap"], "np.memmap")  # fmt: skip
    row("ActivationLoader, blocks, rows/s", rates["blocks"], rates["epoch memmap"], "np.memmap")
    row("ActivationLoader, blocks, cold, rows/s", rates["blocks cold"], rates["sequential cold"],
        "sequential read")  # fmt: skip
    row("ActivationLoader, 8 positions, rows/s", rates["positions"], rates["epoch memmap"],
        "np.memmap, whole maps")  # fmt: skip
    return lines


def main() -> None:
    parser = parser_of(__doc__, "a small archive, one round")
    parser.add_argument("--gigabytes", type=float, default=2.4)
    parser.add_argument("--shape", type=int, nargs=3, default=[64, 56, 56])
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        sys.stdout.write(f"{part(options.part, options.folder)}\n")
        return
    shape = (8, 14, 14) if options.quick else tuple(options.shape)
    gigabytes = 0.002 if options.quick else options.gigabytes
    samples = max(BATCH, int(gigabytes * 1e9 / (4 * np.prod(shape))))
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder, rounds = Path(scratch), 1 if options.quick else 3
        written = prepare(folder, samples, shape)
        order = np.random.default_rng(0).permutation(samples)[:2000]
        times = measure_warm(folder, order, rounds) | measure_cold(folder, rounds)
        measured = [written, *rows_of_table(times, samples, len(order))]
    if options.json:
        sys.stdout.write(json.dumps(measured, indent=1) + "\n")
        return
    lines = [["", "featuremaps", "other", "ratio"]]
    for one in measured:
        other = next(k for k in one if k not in ("what", "featuremaps", "ratio"))
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        lines.append(
            [one["what"], f"{one['featuremaps']:.4g}", f"{one[other]:.4g} ({other})", ratio]
        )
    sys.stdout.write(
        f"{samples} rows of {'×'.join(map(str, shape))} float32\n" + table(lines[0], lines[1:])
    )


if __name__ == "__main__":
    main()
