"""Choice: which samples are drawn, as people say it."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath

from pipeline.archive.samples import StoredSample
from pipeline.foundation.errors import ConfigError, suggestion

_ROW = re.compile(r"-?\d+")
_RANGE = re.compile(r"(-?\d*):(-?\d*)")


def choose_rows(
    ids: Sequence[str], wanted: Sequence[str], *, key: str = "render.samples"
) -> list[int]:
    """Return the rows that words name, in the order of the words, each once.

    A word is the first of these that fits: an id, `all`, a row (negative: from the end), a
    half-open range of rows, an id without its ending or folder, a glob over ids.

    >>> choose_rows(["a/cat.png", "a/dog.png", "b/cow.png"], ["-1", "dog", "a/*"])
    [2, 1, 0]

    Raises:
        ConfigError: when a word names no sample, or one of several, or is both a row and the short
            name of another sample.
    """
    exact = {name: row for row, name in enumerate(ids)}
    short: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        path = PurePath(name)
        for form in {path.name, path.stem, str(path.with_suffix(""))} if path.name else ():
            short.setdefault(form, []).append(row)
    chosen: dict[int, None] = {}
    for word in (unicodedata.normalize("NFC", text) for text in wanted):  # as ids are stored
        rows: Sequence[int] = short.get(word, [])
        if word in exact:
            rows = [exact[word]]
        elif word == "all":
            rows = range(len(ids))
        elif _ROW.fullmatch(word) and -len(ids) <= int(word) < len(ids):
            row = int(word) % len(ids)
            if rows and [*rows] != [row]:
                raise ConfigError(
                    f"{key}: {word!r} is row {row} ({ids[row]}), and short for "
                    f"{_listed([ids[other] for other in rows])}; "
                    f"give a whole id, or {row}:{row + 1} for the row"
                )
            rows = [row]
        elif ends := _RANGE.fullmatch(word):
            start, stop = (int(end) if end else None for end in ends.groups())
            rows = range(len(ids))[start:stop]
        elif len(rows) > 1:
            raise ConfigError(
                f"{key}: {word!r} is short for {_listed([ids[row] for row in rows])}; "
                "give a whole id, or a glob for all of them"
            )
        elif not rows:
            rows = [row for row, name in enumerate(ids) if fnmatch.fnmatchcase(name, word)]
        if not rows:
            near = f"there are {len(ids)}"
            if not (_ROW.fullmatch(word) or _RANGE.fullmatch(word)):
                near = suggestion(word, [*short, *ids])
            raise ConfigError(f"{key}: no sample {word!r}; {near}")
        chosen |= dict.fromkeys(rows)
    return list(chosen)


def _listed(ids: Sequence[str]) -> str:
    """Return the first ids of several, and how many there are.

    >>> _listed(["a", "b"]), _listed(["a", "b", "c", "d", "e", "f"])
    ('a, b', 'a, b, c, d, … (6 in all)')
    """
    return ", ".join(ids[:4]) + (f", … ({len(ids)} in all)" if len(ids) > 4 else "")


def with_labels(samples: list[StoredSample], labels: Sequence[str]) -> list[StoredSample]:
    """Return the samples whose label name or number is one of `labels`; all, where there are none.

    Raises:
        ConfigError: when no sample has such a label.
    """
    labels = [unicodedata.normalize("NFC", label) for label in labels]
    names = {name for sample in samples for name in (sample.label_name, str(sample.label)) if name}
    for label in labels:
        if label not in names:
            raise ConfigError(
                f"render.labels: no chosen sample has {label!r}; {suggestion(label, names)}"
            )
    return [s for s in samples if not labels or {s.label_name, str(s.label)} & set(labels)]
