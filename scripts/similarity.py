"""What similarity over an archive costs: CKA of all pairs of layers against reading the same bytes.

    uv run python scripts/similarity.py [--quick] [--json] [--samples 50000] [--channels 64]

An archive of 20 pooled layers; everything from a warm page cache, side by side in one run, each in
a fresh process. Memory is the most that the process had of its own, mapped files left out.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import anonymous_memory, in_child, parser_of
from synthetic_archive import SyntheticLayer, write_archive

from pipeline import Archive, similarity
from pipeline.common.progress import table
from pipeline.similarity.covariance_backend import CovarianceBackend
from pipeline.similarity.features import features_of
from pipeline.similarity.matching import match


def prepare(path: Path, layers: int, channels: int, samples: int) -> None:
    """Write an archive of random vectors that share some of their variance."""
    mixing = np.random.default_rng(0).standard_normal((layers, 16, channels), dtype=np.float32)

    def rows(layer: int, start: int, stop: int) -> np.ndarray[Any, Any]:
        shared = np.random.default_rng(start).standard_normal((stop - start, 16), np.float32)
        noise = np.random.default_rng((start, layer)).standard_normal(
            (stop - start, channels), np.float32
        )
        return shared @ mixing[layer] + noise

    write_archive(
        path,
        {
            f"layer{i}": SyntheticLayer(shape=(channels,), rows=lambda a, b, i=i: rows(i, a, b))
            for i in range(layers)
        },
        [f"{i:08d}" for i in range(samples)], shards=max(1, samples // 20000), block=1000,
    )  # fmt: skip


class Peak(threading.Thread):
    """Watches how much memory of its own this process has (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.ended = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.005):
            self.most = max(self.most, anonymous_memory())

    def stop(self) -> int:
        """Return the most there was, in bytes."""
        self.ended.set()
        self.join()
        return self.most


def part(what: str, path: Path) -> dict[str, float]:
    """Do one thing in this process; return seconds and peak memory in bytes."""
    peak = Peak()
    start = time.perf_counter()
    if what == "cka":
        similarity(path, bootstrap=0)
    elif what == "cka with intervals":
        similarity(path)
    else:
        with Archive.open(path) as archive:
            start = time.perf_counter()
            if what == "sums":
                CovarianceBackend(features_of([archive], "mean"), match([archive]), None).hsic()
            elif what == "plain read":
                for layer in archive.layers.values():
                    for row in range(0, len(archive), 4096):
                        _ = layer[row : row + 4096]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": peak.stop()}


def measured(what: str, path: Path, rounds: int) -> dict[str, float]:
    """Return the fastest of some rounds, each in a process of its own."""
    results = [in_child("--part", what, "--archive", path) for _ in range(rounds)]
    return min(results, key=lambda result: result["seconds"])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--samples", type=int, default=50000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--part")
    parser.add_argument("--archive", type=Path)
    options = parser.parse_args()
    if options.part:
        sys.stdout.write(json.dumps(part(options.part, options.archive)))
        return
    layers, rounds = (4, 1) if options.quick else (20, 3)
    samples = 2000 if options.quick else options.samples
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for count in (samples,) if options.quick else (1000, samples, 2 * samples):
            path = Path(scratch) / str(count)
            prepare(path, layers, options.channels, count)
            read = measured("plain read", path, rounds)
            nbytes = layers * options.channels * 4 * count
            for what in ("plain read", "sums", "cka", "cka with intervals"):
                result = read if what == "plain read" else measured(what, path, rounds)
                rows.append({
                    "what": what, "samples": count, "seconds": result["seconds"],
                    "rows/s": count / result["seconds"], "GB/s": nbytes / result["seconds"] / 1e9,
                    "over plain read": read["seconds"] / result["seconds"],
                    "memory MB": result["peak"] / 1e6,
                })  # fmt: skip
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    lines = [
        (r["what"], r["samples"], f"{r['seconds']:.2f}", f"{r['rows/s']:.0f}", f"{r['GB/s']:.2f}",
         f"{r['over plain read']:.2f}", f"{r['memory MB']:.0f}")
        for r in rows
    ]  # fmt: skip
    sys.stdout.write(table(list(rows[0]), lines, right=range(1, 7)))


if __name__ == "__main__":
    main()
