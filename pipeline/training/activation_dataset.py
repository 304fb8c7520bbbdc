"""Stored activations as a `torch.utils.data.Dataset`: to train a probe on one layer or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from pipeline.archive.format import schema
from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ArchiveError


class ActivationDataset(Dataset[tuple[Any, ...]]):
    """Item i: layer → activation of the i-th stored sample, and its label.

    With `ids=True` its row in the archive and its id come after these.

    Skipped samples are left out, or an error (`skipped="raise"`). Safe with any number of workers:
    each process opens the archive for itself.
    """

    def __init__(
        self,
        archive: str | Path,
        layers: str | Sequence[str],
        *,
        skipped: str = "leave_out",
        ids: bool = False,
    ) -> None:
        """Open an archive for one layer or several, by name or alias.

        Args:
            archive: its folder.
            layers: names or aliases; items are keyed by what is given here.
            skipped: `leave_out` or `raise`.
            ids: whether items also hold row and id.

        Raises:
            ArchiveError: when it is no complete archive, or samples were skipped and must not be.
            LayerError: when there is no such layer.
        """
        if skipped not in ("leave_out", "raise"):
            raise ValueError(f"skipped takes leave_out or raise, got {skipped!r}")
        self._path = Path(archive)
        self._ids = ids
        wanted = [layers] if isinstance(layers, str) else list(layers)
        with Archive.open(self._path) as opened:
            self.names = {name: opened.layer(name).name for name in wanted}
            self.samples = [sample for sample in opened.samples if not sample.error]
            left_out = len(opened) - len(self.samples)
        if left_out and skipped == "raise":
            raise ArchiveError(f"{archive}: {left_out} samples were skipped")
        self._opened: tuple[int, Archive] | None = None

    def __len__(self) -> int:
        """Count the stored samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return the activations of a stored sample, and its label (-1: none); see the class."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return several items; their rows are read into one array a layer."""
        if self._opened is None or self._opened[0] != os.getpid():  # a forked worker opens its own
            self._opened = (os.getpid(), Archive.open(self._path))
        archive = self._opened[1]
        threads = 2 if get_worker_info() is None else 1  # a worker is one of several
        samples = [self.samples[index] for index in indices]
        rows = [sample.index for sample in samples]
        arrays = {}
        for key, name in self.names.items():
            layer = archive.layers[name]
            arrays[key] = np.empty((len(rows), *layer.shape[1:]), layer.dtype)
            archive.read_into(schema.activation_rows(name), rows, arrays[key], threads=threads)
        tensors = {key: torch.from_numpy(values) for key, values in arrays.items()}
        items = []
        for place, sample in enumerate(samples):
            found = {key: values[place] for key, values in tensors.items()}
            item = (found, sample.label)
            items.append((*item, sample.index, sample.id) if self._ids else item)
        return items

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open files when pickled to a worker."""
        return {**self.__dict__, "_opened": None}
