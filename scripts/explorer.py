"""How the explorer holds for many samples: time of pages, memory, many clients at once.

    uv run python scripts/explorer.py [--quick] [--json] [--samples 100000] [--clients 50]

A synthetic archive of 20 layers and a server in a process of its own. A page is timed with all the
pictures that it shows on opening, as a browser would fetch them (six at a time): cold when it is
asked for first, warm when it is asked for again. Memory is the server's own, mapped files left out.
"""

import hashlib
import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from measuring import anonymous_memory, parser_of
from synthetic_archive import SyntheticLayer, write_archive

from pipeline.common.progress import table


def prepare(path: Path, samples: int, layers: int) -> None:
    shape = (16, 4, 4)

    def rows(layer: int, start: int, stop: int) -> np.ndarray[Any, Any]:
        chance = np.random.default_rng((layer, start))
        return chance.standard_normal((stop - start, *shape), dtype=np.float32)

    def images(start: int, stop: int) -> np.ndarray[Any, Any]:
        chance = np.random.default_rng(start)
        return chance.integers(0, 256, (stop - start, 3, 32, 32), dtype=np.uint8)

    write_archive(
        path,
        {
            f"layer{i}": SyntheticLayer(shape=shape, rows=lambda a, b, i=i: rows(i, a, b))
            for i in range(layers)
        },
        [f"img{i:08d}" for i in range(samples)], labels=[i % 10 for i in range(samples)],
        shards=max(1, samples // 20000), images=images, image_shape=(3, 32, 32), block=1000,
    )  # fmt: skip


class Visitor:
    """Fetches pages with a cookie."""

    def __init__(self, url: str) -> None:
        """Take the address that was printed."""
        parts = urlsplit(url)
        self._at = (parts.hostname, parts.port)
        self._local = threading.local()
        self._cookie = ""
        _, _, headers = self.get(f"/?{parts.query}")
        self._cookie = (headers["set-cookie"] or "").split(";")[0]

    def get(self, path: str) -> tuple[int, bytes, Any]:
        """Return status, content and headers of an address."""
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(*self._at, timeout=60)
        connection = self._local.connection
        connection.request("GET", path, headers={"cookie": self._cookie})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers

    def page(self, path: str, pool: ThreadPoolExecutor, pictures: int = 6) -> tuple[float, float]:
        """Return seconds until a page is there, and until its first pictures are too."""
        start = time.perf_counter()
        status, content, _ = self.get(path)
        text = time.perf_counter() - start
        assert status == 200, (path, status)
        shown = re.findall(r'<img[^>]*src="([^"]+)"', content.decode())[:pictures]
        for code, *_ in pool.map(lambda link: self.get(link.replace("&amp;", "&")), shown):
            assert code == 200
        return text, time.perf_counter() - start


def storm(visitor: Visitor, paths: list[str], clients: int, seconds: float) -> dict[str, float]:
    """Let many clients ask at once; return how many answers there were, and how many wrong ones."""
    end = time.perf_counter() + seconds
    done, wrong, times = [0] * clients, [0] * clients, []

    def client(number: int) -> None:
        chance = np.random.default_rng(number)
        while time.perf_counter() < end:
            start = time.perf_counter()
            status, _, _ = visitor.get(paths[int(chance.integers(len(paths)))])
            times.append(time.perf_counter() - start)
            done[number] += 1
            wrong[number] += status != 200

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"answers": sum(done), "wrong": sum(wrong), "p95": float(np.percentile(times, 95))}


def digest(path: Path) -> str:
    """Return a digest of all files of an archive."""
    digested = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digested.update(file.read_bytes())
    return digested.hexdigest()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    samples, layers, visits = (options.samples, 20, 40)
    if options.quick:
        samples, layers, visits, options.clients, options.seconds = 200, 3, 4, 4, 1.0
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        path = Path(scratch) / "archive"
        prepare(path, samples, layers)
        before = digest(path)
        start = time.perf_counter()
        tool = [sys.executable, "-m", "pipeline.cli"]
        command = [*tool, "serve", str(path), "--port", "0", "--no-browser"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        visitor = Visitor(url)
        rows.append(("start, s", f"{time.perf_counter() - start:.2f}"))
        key = re.search(rb'href="/a/([^"]+)"', visitor.get("/")[1])
        assert key
        base = f"/a/{key[1].decode()}"
        chance = np.random.default_rng(0)
        units = [f"{base}/layer/layer{chance.integers(layers)}/unit/{chance.integers(16)}"
                 for _ in range(visits)]  # fmt: skip
        shown = [f"{base}/sample/{chance.integers(samples)}" for _ in range(visits)]
        with ThreadPoolExecutor(6) as pool:
            first = visitor.page(base, pool)
            rows.append(("first page, s (with 6 pictures)", f"{first[0]:.3f} ({first[1]:.3f})"))
            for name, paths in (("unit", units), ("sample", shown)):
                for state in ("cold", "warm"):
                    seconds = np.array([visitor.page(path, pool) for path in paths])
                    text, whole = np.percentile(seconds, 95, axis=0)
                    rows.append((f"{name} page {state}, p95 s (with 6 pictures)",
                                 f"{text:.3f} ({whole:.3f})"))  # fmt: skip
            search = visitor.page(f"{base}?q=777&label=7", pool, 0)
            rows.append(("a search, s", f"{search[0]:.3f}"))
            for name, page in (
                ("map of the dataset, s", "data/map.json?layer=layer1"),
                ("nearest positions, s", "nearest?sample=5&layer=layer1&y=1&x=1"),
            ):
                rows.append((name, f"{_timed(visitor, f'{base}/{page}'):.2f}"))
        rows.append(("memory, MB", f"{anonymous_memory(server.pid) / 1e6:.0f}"))
        many = [*units, *shown, base, f"{base}?page=2", *(
            f"{base}/draw/strip.png?sample={row}" for row in range(min(samples, 200)))]  # fmt: skip
        marks = []
        for _ in range(2):
            results = storm(visitor, many, options.clients, options.seconds / 2)
            marks.append(anonymous_memory(server.pid) / 1e6)
            rows.append((f"{options.clients} clients, {options.seconds / 2:.0f} s",
                         f"{results['answers']:.0f} answers, {results['wrong']:.0f} wrong, "
                         f"p95 {results['p95']:.2f} s, {marks[-1]:.0f} MB"))  # fmt: skip
        server.send_signal(2)
        rows.append(("ends with", str(server.wait(10))))
        rows.append(("archive unchanged", str(digest(path) == before)))
    if options.json:
        sys.stdout.write(json.dumps(dict(rows), indent=1) + "\n")
        return
    sys.stdout.write(table(("what", f"{samples} samples × {layers} layers"), rows))


def _timed(visitor: Visitor, path: str) -> float:
    start = time.perf_counter()
    assert visitor.get(path)[0] == 200
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
