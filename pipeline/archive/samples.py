"""The samples of an archive, as its table tells of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from pipeline.foundation.errors import suggestion


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """One row of the sample table.

    Attributes:
        index: its row.
        id, label, label_name, path: as the dataset gave them.
        error: why the sample was skipped; empty unless it was.
        pixels_sha256: of its stored pixels; empty where an earlier version has written the archive.
    """

    index: int
    id: str
    label: int
    label_name: str
    path: str
    error: str
    pixels_sha256: str = ""


class Samples(Sequence[StoredSample]):
    """The samples of an archive, by row or by id."""

    def __init__(self, samples: Sequence[StoredSample]) -> None:
        """Take them in the order of their rows."""
        self._samples = samples
        self.by_id: Mapping[str, StoredSample] = {sample.id: sample for sample in samples}

    @overload
    def __getitem__(self, key: int | str) -> StoredSample: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[StoredSample]: ...

    def __getitem__(self, key: int | str | slice) -> StoredSample | Sequence[StoredSample]:
        """Return the sample of a row or an id, or those of a slice of rows.

        Raises:
            IndexError, KeyError: when there is none; for an id with the nearest ones.
        """
        if not isinstance(key, str):
            return self._samples[key]
        key = unicodedata.normalize("NFC", key)  # as ids are stored
        if key not in self.by_id:
            raise KeyError(f"no sample {key!r}; {suggestion(key, self.by_id)}")
        return self.by_id[key]

    def __len__(self) -> int:
        """Count them."""
        return len(self._samples)
