"""Shared parts of the scripts: options, clocks, medians of interleaved rounds, child processes."""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def parser_of(
    doc: str | None, quick: str = "one small round, to see that it runs"
) -> argparse.ArgumentParser:
    """Return a parser with the options that every script has."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def clock(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    timed: Callable[[Callable[[], Any]], float] = clock,
) -> dict[str, float]:
    """Return way → median seconds over interleaved rounds."""
    seconds = [{way: timed(work) for way, work in ways.items()} for _ in range(rounds)]
    return {way: statistics.median(one[way] for one in seconds) for way in ways}


def write_synced(path: Path, total: int) -> None:
    """Write a file of random bytes and sync it."""
    block = random.Random(0).randbytes(min(total, 32 * 2**20))
    with path.open("wb", buffering=0) as file:
        for start in range(0, total, len(block)):
            file.write(memoryview(block)[: total - start])
        os.fsync(file.fileno())


def in_child(*arguments: object) -> Any:
    """Run this script again with other arguments; return the JSON of its last line."""
    command = [sys.executable, sys.argv[0], *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak() -> int:
    """Return the largest resident memory of this process so far, MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def anonymous_memory(process: int | str = "self") -> int:
    """Return the bytes of a process's own memory, without mapped files (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
