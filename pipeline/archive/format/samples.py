"""The sample table of an archive."""

import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from pipeline.archive.format import schema
from pipeline.common.arrays import Array
from pipeline.common.errors import plural, suggestion


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """One row of the sample table.

    Attributes:
        index: row in the archive.
        id, label, label_name, path: as returned by the dataset.
        error: reason why the sample was skipped; empty for stored samples.
        pixels_sha256: of the stored pixels; empty for skipped samples.
    """

    index: int
    id: str
    label: int
    label_name: str
    path: str
    error: str
    pixels_sha256: str


class Samples(Sequence[StoredSample]):
    """The samples of an archive, by row or by id: columns `schema.SAMPLE_COLUMNS` in row order."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = columns

    @property
    def ids(self) -> Sequence[str]:
        """Ids in row order."""
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
        """Return the sample of a row or an id, or the samples of a slice of rows.

        Raises:
            IndexError: when the row does not exist.
            KeyError: when the id does not exist; the message lists the nearest ids.
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
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Samples: {plural(len(self), 'sample')}, {reprlib.repr(list(self.ids[:7]))}>"
