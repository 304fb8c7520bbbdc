"""Choice: which samples are drawn, as people say it."""

from __future__ import annotations

import fnmatch
import re
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

    A word is an id, perhaps without its ending or folder, else `all`, a row (from the end where it
    is negative), a half-open range of rows or a glob over ids.

    >>> choose_rows(["a/cat.png", "a/dog.png", "b/cow.png"], ["-1", "dog", "a/*"])
    [2, 1, 0]

    Raises:
        ConfigError: when a word names no sample.
    """
    rows = {name: row for row, name in enumerate(ids)}
    short: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        path = PurePath(name)
        for form in {path.name, path.stem, str(path.with_suffix(""))} if path.name else ():
            short.setdefault(form, []).append(row)
    found: dict[int, None] = {}
    for word in wanted:
        if word in rows:
            these: Sequence[int] = [rows[word]]
        elif word in short:
            these = short[word]
        elif word == "all":
            these = range(len(ids))
        elif _ROW.fullmatch(word):
            row = int(word)
            these = [row % len(ids)] if -len(ids) <= row < len(ids) else []
        elif ends := _RANGE.fullmatch(word):
            start, stop = (int(end) if end else None for end in ends.groups())
            these = range(len(ids))[start:stop]
        else:
            these = [row for name, row in rows.items() if fnmatch.fnmatchcase(name, word)]
        if not these:
            near = f"there are {len(ids)}"
            if not (_ROW.fullmatch(word) or _RANGE.fullmatch(word)):
                near = suggestion(word, [*short, *rows])
            raise ConfigError(f"{key}: no sample {word!r}; {near}")
        found |= dict.fromkeys(these)
    return list(found)


def with_labels(samples: list[StoredSample], labels: Sequence[str]) -> list[StoredSample]:
    """Return the samples whose label name or number is one of `labels`; all, where there are none.

    Raises:
        ConfigError: when no sample has such a label.
    """
    names = {name for sample in samples for name in (sample.label_name, str(sample.label)) if name}
    for label in labels:
        if label not in names:
            raise ConfigError(
                f"render.labels: no chosen sample has {label!r}; {suggestion(label, names)}"
            )
    return [s for s in samples if not labels or {s.label_name, str(s.label)} & set(labels)]
