"""How the gallery holds for many samples: memory, time, and how soon its first page shows.

Prints one table, for a tenth of the samples and for all of them, in one run:

    uv run python scripts/many_samples.py --samples 100000

The archive is synthetic (small images, small layers); thumbnails and pages are made for every
sample. The first page and a search are timed in Chromium, from disk, without a cache.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import clock, in_child, parser_of, peak

from pipeline.archive.reading.archive import Archive
from pipeline.gallery.pages import write_gallery
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.rendering.options import THUMBNAILS
from pipeline.rendering.render import RenderOptions, render


def main() -> None:
    parser = parser_of(__doc__, "few samples, to see that it runs")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--draw", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        print(json.dumps(draw(*options.draw)))
        return
    samples = 200 if options.quick else options.samples
    columns = []
    for count in (samples // 10, samples):
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            columns.append(measure(Path(scratch), count))
    if options.json:
        print(json.dumps(columns, indent=1))
        return
    for name in columns[0]:
        print(f"{name:32} {columns[0][name]:>12} {columns[1][name]:>12}")


def measure(folder: Path, samples: int) -> dict[str, Any]:
    """Return the measurements for `samples` samples."""
    extract = [
        sys.executable, "-m", "pipeline.cli", "extract", "model=tiny", "dataset=synthetic",
        f"dataset.samples={samples}", "dataset.height=16", "dataset.width=16", "device=cpu",
        "layers.include=[conv1,conv2]", "loader.num_workers=0", "loader.batch_size=64",
        f"archive={folder / 'archive'}", f"hydra.run.dir={folder / 'run'}",
    ]  # fmt: skip
    extracted = clock(lambda: subprocess.run(extract, check=True, stdout=subprocess.DEVNULL))
    drawn = in_child("--draw", folder / "archive", folder / "out")
    return {
        "samples": samples,
        "extract, s": round(extracted, 1),
        **drawn,
        **browse(folder / "out" / "gallery" / "index.html", f"{samples - 1}"),
    }


def draw(archive_path: Path, folder: Path) -> dict[str, Any]:
    """Draw thumbnails and gallery of an archive; return times and this process's memory."""
    with Archive.open(archive_path) as archive:
        opened = peak()
        start = time.perf_counter()
        everything = RenderOptions(samples=("all",))
        rendered = render(archive, folder, {THUMBNAILS: Thumbnails(tile_size=32)}, everything)
        drawn = time.perf_counter() - start
        after = peak()
        start = time.perf_counter()
        write_gallery(archive, rendered)
    return {
        "thumbnails, s": round(drawn, 1),
        "gallery, s": round(time.perf_counter() - start, 1),
        "peak memory: archive open, MB": opened,
        "peak memory: thumbnails, MB": after,
        "peak memory: gallery, MB": peak(),
        "search.js, MB": round((folder / "gallery" / "search.js").stat().st_size / 1e6, 1),
    }


def browse(index: Path, text: str) -> dict[str, Any]:
    """Return milliseconds until the first page shows, and until a search has found `text`."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        return {"first page, ms": "no browser", "search, ms": "no browser"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        start = time.perf_counter()
        page.goto(index.as_uri(), wait_until="load")
        loaded = "[...document.images].slice(0, 5).every((i) => i.complete && i.naturalWidth)"
        while not page.evaluate(loaded):
            time.sleep(0.005)
        shown = time.perf_counter() - start
        start = time.perf_counter()
        page.fill(".find input", text)
        while "of" not in page.evaluate("document.querySelector('.find output').value"):
            time.sleep(0.005)
        searched = time.perf_counter() - start
        browser.close()
    return {"first page, ms": round(shown * 1e3), "search, ms": round(searched * 1e3)}


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    main()
