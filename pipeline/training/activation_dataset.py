"""Stored activations as a `torch.utils.data.Dataset`, for probes on one or several layers."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from pipeline.archive.format import schema
from pipeline.archive.reading.archive import Archive
from pipeline.common.places import Place, place
from pipeline.common.several import several


class ActivationDataset(Dataset[tuple[Any, ...]]):
    """Dataset whose item i is (layer → activation, label) of the i-th stored sample.

    With `ids=True`, items also contain the row in the archive and the sample id.

    Skipped samples are omitted. Any number of workers is safe: each process opens the archive
    itself.
    """

    def __init__(
        self,
        archive: Archive | str | Place,
        layers: str | Sequence[str],
        *,
        ids: bool = False,
        storage_options: Mapping[str, str] | None = None,
        cache: str = "",
    ) -> None:
        """Open one or several layers of an archive.

        Args:
            archive: open archive, its folder, or its URL; processes that read a URL must be
                started by spawn or forkserver.
            layers: names or aliases; they are the keys of the items.
            ids: whether items also contain row and id.
            storage_options, cache: see `Archive.open`.

        Raises:
            ArchiveError: when the archive is not complete.
            LayerError: when a layer does not exist.
        """
        if isinstance(archive, Archive):
            archive = archive.path
        self._path = place(archive, storage_options=storage_options, cache=cache).absolute()
        self._ids = ids
        with Archive.open(self._path) as opened:
            self.names = {key: opened.layer(key).name for key in several(layers)}
            self.samples = [sample for sample in opened.samples if not sample.error]
        self._opened: tuple[int, Archive] | None = None

    def __len__(self) -> int:
        """Count the stored samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return the activations and the label (-1: unlabelled) of a sample; see the class."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return several items; their rows are read into one array per layer."""
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
        for i, sample in enumerate(samples):
            item = ({key: values[i] for key, values in tensors.items()}, sample.label)
            items.append((*item, sample.index, sample.id) if self._ids else item)
        return items

    def __getstate__(self) -> dict[str, Any]:
        """Omit the open files when pickling to a worker."""
        return {**self.__dict__, "_opened": None}
