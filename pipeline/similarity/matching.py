"""Matching of samples across archives by id."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, one_line

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Samples that every archive holds, in the order of the first."""

    ids: Sequence[str]
    rows: Sequence[Array]  # of each archive, `(sample,)` int64
    labels: Array  # `(sample,)` int64, -1 without a label
    missing: int  # number of ids that are not in every archive
    skipped: int  # number of ids that an archive has skipped

    def __len__(self) -> int:
        return len(self.ids)


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
    skipped = len(common) - len(ids)
    ids = drawn_samples(ids, samples, seed)
    labels = [_label([table[id_] for table in tables], archives) for id_ in ids]
    return Matched(
        ids=ids,
        rows=[np.array([table[id_].index for id_ in ids], np.int64) for table in tables],
        labels=np.array(labels, np.int64),
        missing=missing,
        skipped=skipped,
    )


def drawn_samples(items: list[T], samples: int | None, seed: int) -> list[T]:
    """Return at most `samples` items, drawn at random, in order; None returns all."""
    if samples is None or samples >= len(items):
        return items
    chosen = np.random.default_rng(seed).choice(len(items), samples, replace=False)
    return [items[i] for i in np.sort(chosen)]


def _label(samples: Sequence[StoredSample], archives: Sequence[Archive]) -> int:
    """Return the label that archives give a sample, from the first that has one; -1 without any.

    Names are compared where both archives have them, else numbers.
    """
    labelled = [i for i, sample in enumerate(samples) if sample.label != -1]
    if not labelled:
        return -1
    first = samples[labelled[0]]
    for i in labelled[1:]:
        other = samples[i]
        has_names = first.label_name and other.label_name
        a, b = (s.label_name if has_names else str(s.label) for s in (first, other))
        if a != b:
            raise ConfigError(
                f"similarity: {one_line(first.id, limit=60)} has label {a} in "
                f"{archives[labelled[0]].path} and {b} in {archives[i].path}; "
                "give archives of one dataset with one set of labels"
            )
    return first.label
