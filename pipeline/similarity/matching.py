"""Matching of samples across archives by id."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, one_line, plural
from pipeline.common.places import Place

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Samples that every archive holds, in the order of the first."""

    ids: Sequence[str]
    rows: Sequence[Array]  # of each archive, `(sample,)` int64
    labels: Array  # `(sample,)` int64, 0-based without gaps, -1 without a label
    missing: int  # number of ids that are not in every archive
    skipped: int  # number of ids that an archive has skipped
    total: int  # number of samples before a random part of them was drawn

    def __len__(self) -> int:
        return len(self.ids)


def distinct_paths(archives: Sequence[Archive | Place], command: str) -> list[Place]:
    """Return the paths of archives, or raise ConfigError if one is given twice."""
    paths = [item.path if isinstance(item, Archive) else item for item in archives]
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(paths):
        if resolved[number] in resolved[:number]:
            raise ConfigError(f"{command}: {path} is given twice; give each archive once")
    return paths


def match(archives: Sequence[Archive], samples: int | None = None, seed: int = 0) -> Matched:
    """Return the samples that all archives hold and none has skipped, at most `samples` of them,
    drawn at random.
    """
    tables = [{sample.id: sample for sample in archive.samples} for archive in archives]
    common = [id_ for id_ in tables[0] if all(id_ in table for table in tables)]
    missing = len(set().union(*tables)) - len(common)
    if not common:
        other = next(i for i, table in enumerate(tables) if not table.keys() & tables[0].keys())
        first = [one_line(next(iter(tables[i]), "nothing"), limit=60) for i in (0, other)]
        raise ConfigError(
            f"similarity: {archives[0].path} and {archives[other].path} have no sample in common "
            f"(the first ids are {first[0]} and {first[1]}); give archives of the same dataset"
        )
    ids = [id_ for id_ in common if not any(table[id_].error for table in tables)]
    if not ids:
        raise ConfigError(
            f"similarity: {archives[0].path}: all samples were skipped by one or another archive"
        )
    skipped, total = len(common) - len(ids), len(ids)
    ids = drawn_samples(ids, samples, seed)
    labelled = [sample for table in tables for sample in table.values() if sample.label != -1]
    named = all(sample.label_name for sample in labelled)  # else the numbers are compared
    numbers: dict[str | int | None, int] = {None: -1}
    labels = [
        numbers.setdefault(label, len(numbers) - 1)
        for label in (_label([table[id_] for table in tables], archives, named) for id_ in ids)
    ]
    return Matched(
        ids=ids,
        rows=[np.array([table[id_].index for id_ in ids], np.int64) for table in tables],
        labels=np.array(labels, np.int64),
        missing=missing,
        skipped=skipped,
        total=total,
    )


def random_part(count: int, total: int) -> str:
    """Return a note about a random part of the samples."""
    return f"a random {count:,} of {plural(total, 'sample')}"


def drawn_samples(items: list[T], samples: int | None, seed: int) -> list[T]:
    """Return at most `samples` items, drawn at random, in order; None returns all."""
    if samples is None or samples >= len(items):
        return items
    chosen = np.random.default_rng(seed).choice(len(items), samples, replace=False)
    return [items[i] for i in np.sort(chosen)]


def _label(
    samples: Sequence[StoredSample], archives: Sequence[Archive], named: bool
) -> str | int | None:
    """Return the name or number of the label that archives give a sample, None without any."""
    labels = [
        (archive.path, sample.label_name if named else sample.label)
        for archive, sample in zip(archives, samples, strict=True)
        if sample.label != -1
    ]
    for path, label in labels[1:]:
        if label != labels[0][1]:
            raise ConfigError(
                f"similarity: {one_line(samples[0].id, limit=60)} has label {labels[0][1]} in "
                f"{labels[0][0]} and {label} in {path}; "
                "give archives of one dataset with one set of labels"
            )
    return labels[0][1] if labels else None
