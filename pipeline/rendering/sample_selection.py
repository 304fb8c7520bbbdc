"""Sample selection by row, range, id, short id, glob or label."""

import fnmatch
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath
from typing import Protocol, TypeVar

from pipeline.common.errors import ConfigError, known, listed, suggestion
from pipeline.rendering.options import RenderOptions

MOST = 20
"""Number of samples drawn by default."""

log = logging.getLogger(__name__)

_ROW = re.compile(r"-?\d+")
_RANGE = re.compile(r"(-?\d*):(-?\d*)")


def choose_rows(
    ids: Sequence[str], selectors: Sequence[str], *, key: str = "render.samples"
) -> list[int]:
    """Return the rows of the `selectors` samples in that order, without duplicates.

    The first match of each word counts: an id, `all`, a row (negative: from the end), a half-open
    range of rows, an id without its extension or folder, a glob over ids.

    >>> choose_rows(["a/cat.png", "a/dog.png", "b/cow.png"], ["-1", "dog", "a/*"])
    [2, 1, 0]
    """
    exact = {name: row for row, name in enumerate(ids)}
    short: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        path = PurePath(name)
        forms = (path.name, path.stem, str(path.with_suffix(""))) if path.name else ()
        for form in dict.fromkeys(forms):
            short.setdefault(form, []).append(row)
    chosen: dict[int, None] = {}
    for word in (unicodedata.normalize("NFC", text) for text in selectors):  # as ids are stored
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
                    f"{listed([ids[other] for other in rows], 4)}; "
                    f"give a whole id, or {row}:{row + 1} for the row"
                )
            rows = [row]
        elif ends := _RANGE.fullmatch(word):
            start, stop = (int(end) if end else None for end in ends.groups())
            rows = range(len(ids))[start:stop]
        elif len(rows) > 1:
            raise ConfigError(
                f"{key}: {word!r} is short for {listed([ids[row] for row in rows], 4)}; "
                "give a whole id, or a glob for all of them"
            )
        elif not rows:
            rows = [row for row, name in enumerate(ids) if fnmatch.fnmatchcase(name, word)]
        if not rows:
            hint = f"there are {len(ids)}"
            if not (_ROW.fullmatch(word) or _RANGE.fullmatch(word)):
                hint = suggestion(word, [*short, *ids])
            raise ConfigError(f"{key}: no sample {word!r}; {hint}")
        chosen |= dict.fromkeys(rows)
    return list(chosen)


class _Labelled(Protocol):
    """A sample with id and label, stored or not yet stored."""

    @property
    def id(self) -> str: ...
    @property
    def label(self) -> int: ...
    @property
    def label_name(self) -> str: ...


S = TypeVar("S", bound=_Labelled)


def chosen_samples(samples: Sequence[S], options: RenderOptions, *, say: bool = True) -> list[S]:
    """Return the samples selected by the options, by default the first `MOST`."""
    rows = choose_rows([sample.id for sample in samples], options.samples or ["all"])
    selected = with_labels([samples[row] for row in rows], options.labels)
    if options.samples or len(selected) <= MOST:
        return selected
    if say:
        log.warning(
            "render: drawing the first %d of %d samples; render.samples=all draws all of them",
            MOST, len(selected),
        )  # fmt: skip
    return selected[:MOST]


def with_labels(samples: list[S], labels: Sequence[str]) -> list[S]:
    """Return the samples whose label name or number is in `labels`; all if it is empty."""
    labels = [unicodedata.normalize("NFC", label) for label in labels]
    names = dict.fromkeys(
        name for sample in samples for name in (sample.label_name, str(sample.label)) if name
    )
    for label in labels:
        known(label, names, "render.labels: no chosen sample has")
    return [s for s in samples if not labels or {s.label_name, str(s.label)} & set(labels)]
