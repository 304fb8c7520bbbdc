"""Terminal output: progress bars or periodic log lines, tables, sizes."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Self, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)
T = TypeVar("T")
_LOG_EVERY_SECONDS = 30.0


class Progress:
    """Progress of images or other units, and of bytes written.

    with Progress("extract", total=1000) as progress:
        progress.advance(16, nbytes=2**20)
    """

    def __init__(self, what: str, total: int, *, done: int = 0, unit: str = "images") -> None:
        self._unit = unit
        self._what = what
        self._total = total
        self._done = self._first = done
        self._bytes = 0
        self._start = self._logged = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit,
            disable=None,
            file=sys.stderr,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.close()
        if kind is None and self._done > self._first:
            log.info("%s", self.summary())

    def advance(self, units: int, *, nbytes: int = 0) -> None:
        """Add finished units."""
        self._done += units
        self._bytes += nbytes
        if self._bytes:
            self._bar.set_postfix_str(size(self._bytes), refresh=False)
        self._bar.update(units)
        now = time.monotonic()
        if self._bar.disable and now - self._logged >= _LOG_EVERY_SECONDS:
            self._logged = now
            seconds_left = (
                (now - self._start) / max(1, self._done - self._first) * (self._total - self._done)
            )
            log.info("%s, %s left", self.summary(), duration(seconds_left))

    def summary(self) -> str:
        """Return one line with units, bytes if any, seconds and units per second."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._first) / seconds
        return (
            f"{self._what}: {self._done}/{self._total} {self._unit}, "
            + (f"{size(self._bytes)}, " if self._bytes else "")
            + f"{seconds:.1f} s, {rate:.1f} {self._unit}/s"
        )


def track(what: str, items: Sequence[T], *, unit: str) -> Iterator[T]:
    """Yield items while a `Progress` counts those that are done."""
    with Progress(what, len(items), unit=unit) as progress:
        for item in items:
            yield item
            progress.advance(1)


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()
) -> str:
    """Return rows as aligned text under a header; `right` are the right-aligned columns."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for line in lines:
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        text += "  ".join(cells).rstrip() + "\n"
    return text


def duration(seconds: float) -> str:
    """Return a duration as text.

    >>> duration(42.4), duration(300), duration(9000), duration(200_000)
    ('42 s', '5 min', '2.5 h', '2.3 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def number(value: float, digits: int = 4) -> str:
    """Return a number as text with `digits` significant digits; integers below ten million.

    >>> number(11760.4), number(0.123456), number(-1e9), number(float("nan"))
    ('11,760', '0.1235', '-1e+09', '–')
    """
    if value != value:
        return "–"
    integer = 10 ** (digits - 1) <= abs(value) < 1e7
    return f"{value:,.0f}" if integer else f"{value:.{digits}g}"


def size(nbytes: float) -> str:
    """Return a number of bytes as text, in powers of 1000.

    >>> size(1_234_000)
    '1.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(nbytes) < 1000 or unit == "TB":
            break
        nbytes /= 1000
    return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
