"""The samples of an archive: its sample table, column by column."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from pipeline.archive.format import schema
from pipeline.common.arrays import Array
from pipeline.common.errors import suggestion


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """One row of the sample table.

    Attributes:
        index: its row.
        id, label, label_name, path: as the dataset gave them.
        error: why the sample was skipped; empty unless it was.
        pixels_sha256: of its stored pixels; empty for skipped samples.
    """

    index: int
    id: str
    label: int
    label_name: str
    path: str
    error: str
    pixels_sha256: str


class Samples(Sequence[StoredSample]):
    """The samples of an archive, by row or by id."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Take the columns that `schema.SAMPLE_COLUMNS` names, in the order of the rows."""
        self._columns = columns

    @property
    def ids(self) -> Sequence[str]:
        """Their ids, in the order of the rows."""
        return self._columns["id"]

    @property
    def status(self) -> Array:
        """`schema.STATUS_STORED` or `STATUS_SKIPPED` per sample, uint8."""
        return np.array(self._columns["status"], np.uint8)

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Id → row."""
        return {name: row for row, name in enumerate(self.ids)}

    @overload
    def __getitem__(self, key: int | str) -> StoredSample: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[StoredSample]: ...

    def __getitem__(self, key: int | str | slice) -> StoredSample | Sequence[StoredSample]:
        """Return the sample of a row or an id, or those of a slice of rows.

        Raises:
            IndexError, KeyError: when there is none; for an id with the nearest ones.
        """
        if isinstance(key, slice):
            return [self[row] for row in range(len(self))[key]]
        if isinstance(key, str):
            key = unicodedata.normalize("NFC", key)  # as ids are stored
            if key not in self.rows:
                raise KeyError(f"no sample {key!r}; {suggestion(key, self.rows)}")
            key = self.rows[key]
        row = range(len(self))[key]
        values = {name: self._columns[name][row] for name in schema.SAMPLE_COLUMNS}
        del values["status"]
        return StoredSample(index=row, **values)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.ids)
