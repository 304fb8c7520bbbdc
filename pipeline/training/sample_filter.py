"""Filters of a loader's samples by label and id."""

import unicodedata
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from pipeline.archive.format.samples import Samples, StoredSample
from pipeline.archive.reading.indexing import row_numbers
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, suggestion
from pipeline.common.several import several

Labels = int | str | Sequence[int | str]
"""Labels or their names."""
Ids = str | Sequence[str] | Callable[[str], bool]
"""Ids, or a function that returns whether to use the sample with an id."""


def filtered_rows(
    samples: Samples, rows: Sequence[int] | None, labels: Labels | None, ids: Ids | None
) -> Array:
    """Return the rows of the stored samples that all given filters select, ascending int64.

    Raises:
        ConfigError: when a row, label or id does not exist, or no sample is selected.
    """
    stored = [sample for sample in samples if not sample.error]
    selected = {sample.index for sample in stored}
    if rows is not None:
        selected &= {*row_numbers(rows, len(samples))}
    if labels is not None:
        selected &= _labelled(stored, labels)
    if callable(ids):
        selected = {row for row in selected if ids(samples.ids[row])}
    elif ids is not None:
        try:
            selected &= {samples[str(id_)].index for id_ in several(ids)}
        except KeyError as error:
            raise ConfigError(f"ids: {error.args[0]}") from None
    if not selected and stored:
        raise ConfigError("rows, labels, ids: together they select no stored sample")
    return np.array(sorted(selected), np.int64)


def _labelled(stored: Sequence[StoredSample], labels: Labels) -> set[int]:
    values = labels.tolist() if hasattr(labels, "tolist") else labels  # arrays and tensors
    requested = [
        unicodedata.normalize("NFC", label) if isinstance(label, str) else label  # as stored
        for label in several(values)
    ]
    names = {name for sample in stored for name in (sample.label, sample.label_name)} - {""}
    for label in requested:
        known = isinstance(label, Hashable) and label in names
        if not known or isinstance(label, bool):  # True == 1, but is from a mask
            raise ConfigError(
                f"labels: no stored sample has label {label!r}; "
                f"{suggestion(str(label), sorted(map(str, names)))}"
            )
    selected = {*requested}
    return {s.index for s in stored if {s.label, s.label_name or None} & selected}
