"""What an object store costs: extraction with uploads, and an epoch with 30 ms before each answer.

    uv run python scripts/object_store.py [--quick] [--json] [--folder FOLDER] [--signed]

Extraction is compared with the same extraction to a local folder. The store is a small S3 server;
for extractions it has one core alone, and both extractions run on the others. Uploads are not
hashed, as over https (`--signed`: as over http, SHA-256 of every byte). The epoch
(`shuffle="blocks"`), and later ones from the cache on disk, are compared with plain GETs of the
same bytes in the same ranges, as many at once. Rounds are interleaved; the figures are medians.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measuring import parser_of
from photos import write_photos
from synthetic_archive import repeated, write_archive

from pipeline.archive.format import schema
from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.object_path import ObjectPath
from pipeline.common.object_store import get_range
from pipeline.common.places import AHEAD, place
from pipeline.common.progress import table
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Extraction, Storage
from pipeline.models.torchvision import TorchvisionModel
from pipeline.training.activation_loader import ActivationLoader

LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")
BATCH = 64
RUN = 8 * 2**20


class Handler(BaseHTTPRequestHandler):
    """PUT (create-only), HEAD and GET (with ranges) of files in a folder."""

    protocol_version = "HTTP/1.1"
    folder: Path
    latency = 0.0
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self, status: int, length: int, **headers: str) -> None:
        time.sleep(self.latency)
        self.send_response(status)
        for name, value in {"ETag": '"0"', **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Last-Modified", self.date_time_string(0))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.flush()

    def do_PUT(self) -> None:
        """Create an object; 412 if it exists."""
        path, left = self.folder / self.path.lstrip("/"), int(self.headers["Content-Length"])
        temporary = path.with_name(f"{path.name}.{threading.get_ident()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = memoryview(bytearray(2**20))
        with temporary.open("wb", buffering=0) as file:
            while left:
                count = self.rfile.readinto(buffer[: min(left, len(buffer))])
                file.write(buffer[:count])
                left -= count
        try:
            os.link(temporary, path)
            status = 200
        except FileExistsError:
            status = 412
        temporary.unlink()
        self._answer(status, 0)

    def do_GET(self) -> None:
        """Send an object or a range of it."""
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self._answer(404, 0)
            return
        size = path.stat().st_size
        first, last, requested = 0, size - 1, self.headers.get("Range")
        if requested:
            start, _, stop = requested.removeprefix("bytes=").partition("-")
            first = int(start) if start else max(0, size - int(stop))
            last = min(size - 1, int(stop)) if start and stop else size - 1
        more = {"Content_Range": f"bytes {first}-{last}/{size}"} if requested else {}
        self._answer(206 if requested else 200, last + 1 - first, **more)
        if self.command == "GET":
            with path.open("rb") as file:
                while first <= last:
                    first += os.sendfile(
                        self.connection.fileno(), file.fileno(), first, last + 1 - first
                    )

    do_HEAD = do_GET


class Server(ThreadingHTTPServer):
    """The server; many connections may wait."""

    request_queue_size = 128
    daemon_threads = True


@contextmanager
def serving(folder: Path, latency: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Serve a folder from another process; set the environment that leads to it."""
    command = [sys.executable, __file__, "--serve", str(folder), "--latency", str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    os.environ |= {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{process.stdout.readline().strip()}",
        "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def serve(folder: Path, latency: float) -> None:
    """Serve until the process is terminated; print the port first."""
    Handler.folder, Handler.latency = folder, latency
    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


@contextmanager
def on_separate_cores(server: subprocess.Popen[str]) -> Iterator[int]:
    """Give the server one core, and this process the others; yield their number."""
    cores = os.sched_getaffinity(0)
    alone = {max(cores)} if len(cores) > 1 else cores
    os.sched_setaffinity(server.pid, alone)
    os.sched_setaffinity(0, cores - alone or cores)
    try:
        yield len(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, cores)


def measure_extraction(
    folder: Path, images: int, rounds: int, *, signed: bool
) -> list[dict[str, Any]]:
    """Return the seconds of an extraction to a folder and to the store."""
    base = Extraction(
        model=TorchvisionModel(name="resnet18", weights=None),
        dataset=FlatFolder(root=str(write_photos(folder / "photos", images))),
        layers=LayerSelector(include=LAYERS), device="cpu",
    )  # fmt: skip
    ways = ("local", "store", "local cpu", "store cpu")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    bucket = folder / "bucket"
    with serving(bucket) as server, on_separate_cores(server) as cores:
        for number in range(rounds):
            for way, path in (("local", folder / "local"), ("store", f"s3://bucket/{number}")):
                os.sync()
                used = time.process_time()
                made = extract(
                    Extraction(
                        **{name: getattr(base, name) for name in base.__dataclass_fields__}
                        | {
                            "archive": str(path),
                            "storage": Storage(scratch=str(folder)),
                            "storage_options": {"aws_unsigned_payload": str(not signed).lower()},
                        }
                    )
                )
                seconds[way].append(made.seconds)
                seconds[f"{way} cpu"].append(time.process_time() - used)
                if way == "local":
                    nbytes = sum(file.stat().st_size for file in (path / "shards").iterdir())
                assert made.complete
                shutil.rmtree(path if way == "local" else bucket, ignore_errors=True)
    middle = {way: median(times) for way, times in seconds.items()}
    what = f"extract {images} images ({nbytes / 1e9:.2g} GB) on {cores} core(s), images/s"
    ours, local = images / middle["store"], images / middle["local"]
    return [
        {"what": what, "store": ours, "other": local, "beside": "local folder",
         "ratio": ours / local},
        {"what": "the same, CPU seconds", "store": middle["store cpu"],
         "other": middle["local cpu"], "beside": "local folder",
         "ratio": middle["local cpu"] / middle["store cpu"]},
    ]  # fmt: skip


def measure_epoch(folder: Path, gigabytes: float, rounds: int) -> list[dict[str, Any]]:
    """Return the speed of a block-shuffled epoch beside that of plain GETs."""
    shape = (64, 56, 56)
    samples = max(BATCH, int(gigabytes * 1e9 / (4 * np.prod(shape))))
    block = np.random.default_rng(0).standard_normal((BATCH, *shape), dtype=np.float32)
    layer = repeated(block)
    total = samples * block[:1].nbytes
    bucket = folder / "bucket"
    write_archive(bucket / "bucket" / "run", {"layer": layer}, [f"{i:08d}" for i in range(samples)],
                  shards=-(-total // (256 * 2**20)), block=BATCH)  # fmt: skip
    seconds: dict[str, list[float]] = {"plain": [], "epoch": [], "cached": []}
    os.environ["FEATUREMAPS_CACHE"] = str(folder / "cache")
    with serving(bucket, latency=0.03):
        url = "s3://bucket/run"
        with Archive.open(url) as archive:
            shards = archive.manifest.shards
        ranges = []
        for number, (start, stop) in enumerate(shards):
            length = (stop - start) * block[:1].nbytes
            path = schema.shard_path(place(url), number)
            assert isinstance(path, ObjectPath)
            step = RUN // block[:1].nbytes * block[:1].nbytes
            ranges += [(path, i, min(i + step, length)) for i in range(0, length, step)]
        loaders = {
            way: ActivationLoader(url, "layer", BATCH, memory=2**29, cache=cache)
            for way, cache in (("epoch", ""), ("cached", "rows"))
        }
        for _ in range(rounds + 1):  # the first opens the connections and the shards
            start_time = time.perf_counter()
            with ThreadPoolExecutor(AHEAD) as pool:
                received = sum(pool.map(lambda part: len(get_range(*part)), ranges))
            assert received == total
            seconds["plain"].append(time.perf_counter() - start_time)
            for way, loader in loaders.items():
                start_time = time.perf_counter()
                rows = 0
                for batch in loader:
                    batch.activations["layer"].reshape(-1)[0].item()
                    rows += len(batch.rows)
                assert rows == samples
                seconds[way].append(time.perf_counter() - start_time)
        for loader in loaders.values():
            loader.close()
    speed = {way: total / 1e9 / median(times[1:]) for way, times in seconds.items()}
    return [
        {"what": f"{what} of {total / 1e9:.2g} GB, GB/s", "store": speed[way],
         "other": speed["plain"], "beside": f"plain GET, {AHEAD} at once",
         "ratio": speed[way] / speed["plain"]}
        for way, what in (("epoch", "block-shuffled epoch"), ("cached", "the same from the cache"))
    ]  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__, "few images, a small archive, one round")
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("extraction", "epoch"))
    parser.add_argument("--signed", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--latency", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.latency)
        return
    if options.quick:
        options.images, options.gigabytes, options.rounds = 4, 0.06, 1
    measured = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        if options.only != "epoch":
            measured += measure_extraction(
                Path(scratch), options.images, options.rounds, signed=options.signed
            )
        if options.only != "extraction":
            measured += measure_epoch(Path(scratch), options.gigabytes, options.rounds)
    if options.json:
        print(json.dumps(measured, indent=1))
        return
    lines = [(one["what"], f"{one['store']:.4g}", f"{one['other']:.4g} ({one['beside']})",
              f"{one['ratio']:.2f}") for one in measured]  # fmt: skip
    print(table(("", "store", "other", "ratio"), lines))


if __name__ == "__main__":
    main()
