"""What a second worker process gains: two shards at once against one extraction, on the same cores.

Prints one table, measured side by side in one run:

    uv run python scripts/workers.py

Two kinds of work that the model hardly takes part in: decoding large photos for a tiny model, and
writing a large layer of it. Each way is as many processes as a sweep's launcher would start; a
process's start-up is measured apart and left out.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from measuring import medians, parser_of
from photos import write_photos

CHILD = """
import shutil, sys
from pipeline import (
    Extraction, FlatFolder, LayerSelector, Loader, Shard, TinyModel, TransformOverride, extract,
)
photos, archive, side, index, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
common = dict(
    model=TinyModel(transform=TransformOverride(resize=(side,), crop=(side,))),
    layers=LayerSelector(include=("conv1",)), device="cpu", loader=Loader(batch_size=8),
)
warm = f"{archive}-warm-{index}"
extract(Extraction(**common, dataset=FlatFolder(root=photos, limit=2), archive=warm))
shutil.rmtree(warm)
print("ready", flush=True)
sys.stdin.readline()
shard = Shard(index=index, count=count)
extract(Extraction(**common, dataset=FlatFolder(root=photos), archive=archive, shard=shard))
"""
WORK = {"decoding": 16, "writing": 448}
"""Kind of work → side of the model's input: next to nothing to store, or 6 MB an image."""


def main() -> None:
    parser = parser_of(__doc__, "few photos, to see that it runs")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    images, rounds = (4, 1) if options.quick else (options.images, options.rounds)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        photos = write_photos(Path(scratch) / "photos", images, size=(1200, 900))
        for work, side in WORK.items():
            archive = Path(scratch) / "archive"
            ways = {
                f"{workers} workers, images/s": partial(measure, photos, archive, side, workers)
                for workers in (1, 2)
            }
            seconds = medians(ways, rounds, timed=lambda measured: measured())
            results[work] = {way: images / taken for way, taken in seconds.items()}
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for work, rates in results.items():
        one, two = rates.values()
        print(f"{work:10} one worker {one:7.1f} images/s, two {two:7.1f}: {two / one:.2f} times")


def measure(photos: Path, archive: Path, side: int, workers: int) -> float:
    """Return the seconds that `workers` processes need for the whole folder."""
    shutil.rmtree(archive, ignore_errors=True)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, photos, archive, str(side), str(index), str(workers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for index in range(workers)
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            sys.exit("a worker failed to start")
    start = time.perf_counter()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    if any(child.wait() for child in children):
        sys.exit("a worker failed")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
