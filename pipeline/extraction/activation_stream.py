"""Activation stream: batches of activations for training, computed while they are used."""

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.layer_entry import layer_named
from pipeline.archive.format.position_sampling import draw
from pipeline.archive.format.samples import Samples
from pipeline.archive.format.stored_type import decode
from pipeline.archive.writing.shard_writer import ActivationBatch
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, SampleError, whole
from pipeline.common.several import several
from pipeline.extraction.devices import deterministic, reproducible
from pipeline.extraction.extract import batch_ranges, load, within_errors
from pipeline.extraction.loader import Batch
from pipeline.extraction.plan import make_plan
from pipeline.extraction.replicas import ModelReplicas
from pipeline.extraction.settings import Extraction, checked
from pipeline.training.activation_loader import RUN_BYTES, ActivationLoader


class ActivationStream(ActivationLoader):
    """`ActivationLoader` without an archive: the model computes the rows, and nothing is written.

    >>> stream = ActivationStream(extraction, "layer4", 64)  # doctest: +SKIP
    ... for batch in stream:
    ...     train(batch.activations["layer4"], batch.labels)

    Batches equal those of a loader with the same options over the archive that `extract` would
    write, in values and order, bit for bit. While an epoch is under way, torch's settings are those
    of an extraction (deterministic algorithms, no TF32).
    """

    def __init__(
        self,
        extraction: Extraction,
        layers: str | Sequence[str] = (),
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """Load the model and open the dataset.

        Args:
            extraction: what to compute; its archive and resuming are ignored. With `on_error=skip`,
                all images are first decoded once to find those that cannot be used.
            layers: names or aliases; empty selects the extraction's.
            batch_size: samples per batch; None takes those of a forward pass.
            options: of `ActivationLoader`; `shuffle` may be `blocks` or `none`, and statistics for
                `normalize` do not exist. `run_bytes` is at least a forward pass's activations; only
                if it is larger than the loader's value, the order of blocks differs.

        Raises:
            ConfigError, LayerError: when an option cannot be carried out.
            SampleError: when too many images cannot be used.
        """
        if options.get("shuffle") == "full":
            raise ConfigError(
                "shuffle: full would run the model once for each sample's batch; use blocks"
            )
        rows = ModelRows(extraction)
        keys = several(layers)
        entries = rows.manifest.layers
        keys = keys or [entry.name for entry in entries]
        forward = rows.manifest.batch_size
        sample_bytes = sum(layer_named(entries, key, where="layers").sample_bytes for key in keys)
        least = forward * sample_bytes
        run_bytes = whole("run_bytes:", options.get("run_bytes", RUN_BYTES), 1)
        options["run_bytes"] = max(run_bytes, least)
        super().__init__(rows, keys, forward if batch_size is None else batch_size, **options)


@dataclass(frozen=True)
class ComputedRows:
    """Rows of batches: of each, the first row and HDF5 path of a dataset → rows."""

    batches: Sequence[tuple[int, Mapping[str, Array]]]

    def read_into(
        self, name: str, rows: Sequence[int], out: Array, places: Sequence[int] | None = None,
        *, threads: int = 2,
    ) -> None:  # fmt: skip
        """See `Archive.read_into`."""
        del threads
        rows_array = np.asarray(rows)
        where = np.arange(len(rows)) if places is None else np.asarray(places)
        for start, arrays in self.batches:
            values = arrays[name]
            inside = (rows_array >= start) & (rows_array < start + len(values))
            out[where[inside]] = values[rows_array[inside] - start]


class ModelRows:
    """Rows of an extraction, computed when they are read: a `RowStore`."""

    def __init__(self, config: Extraction) -> None:
        """Prepare the extraction.

        Raises:
            ConfigError, LayerError, SampleError: as `ActivationStream`.
        """
        if checked(config).shard.count > 1:
            raise ConfigError("shard: a stream has no shards; use rank= and world_size=")
        with reproducible(config.seed, compiled=config.compile):
            self._plan = make_plan(config)
        self.manifest = self._plan.manifest
        shards = range(len(self.manifest.shards))
        self._ranges = batch_ranges(self.manifest, shards, self._plan.batch_size)
        self._epoch = threading.Lock()
        samples, errors = self._plan.images.samples, self._unreadable()
        fields = ("id", "label", "label_name", "path")
        self.samples = Samples({
            **{key: [getattr(sample, key) for sample in samples] for key in fields},
            "pixels_sha256": [""] * len(samples),
            "status": [int(bool(error)) for error in errors],
            "error": errors,
        })  # fmt: skip

    def __len__(self) -> int:
        """Count the samples, skipped ones included."""
        return len(self.samples)

    def close(self) -> None:
        """Do nothing: the model's hooks are removed after every epoch."""

    def fetched_each(
        self, names: Sequence[str], row_lists: Iterable[Array]
    ) -> Iterator[ComputedRows]:
        """Yield readers of the rows of each list; the model runs while they are used.

        Raises:
            ConfigError: when another epoch is under way.
            SampleError: when an image cannot be used.
        """
        starts = [start for start, _ in self._ranges]
        lists = [
            np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist()
            for rows in row_lists
        ]
        order = [n for before, after in pairwise([[], *lists]) for n in after if n not in before]
        computed = self._computed([self._ranges[number] for number in order], names)
        if not self._epoch.acquire(blocking=False):
            raise ConfigError("a stream yields one epoch at a time; finish or close the other one")
        try:
            batches: dict[int, tuple[int, Mapping[str, Array]]] = {}
            for numbers in lists:
                batches = {n: batches[n] if n in batches else next(computed) for n in numbers}
                yield ComputedRows([*batches.values()])
        finally:
            computed.close()
            self._epoch.release()

    def _computed(
        self, ranges: Sequence[tuple[int, int]], names: Sequence[str]
    ) -> Generator[tuple[int, Mapping[str, Array]]]:
        with (
            load(self._plan, ranges) as loaded,
            deterministic(compiled=self._plan.config.compile),
            ModelReplicas(self._plan) as replicas,
        ):
            for batch in replicas.run(self._usable(loaded)):
                batch.arrived()
                arrays = {name: self._rows(name, batch) for name in names}
                batch.release()
                yield batch.start, arrays

    def _rows(self, name: str, batch: ActivationBatch) -> Array:
        """Return a copy of a batch's rows of a dataset."""
        for entry in self.manifest.layers:
            if name == schema.activation_rows(entry.name):
                return np.array(decode(batch.activations[entry.name], entry.dtype))
            if name == schema.position_rows(entry.name) and entry.drawn:
                rows = range(batch.start, batch.start + len(batch.errors))
                return draw([entry.drawn[0]], rows, entry.drawn[1], entry.shape[0])
        raise AssertionError(name)

    def _usable(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            for row, error in enumerate(batch.errors, batch.start):
                sample = self.samples[row]
                if error and not sample.error:
                    raise SampleError(
                        f"sample {row} ({sample.path or sample.id}): {error}; set on_error=skip to "
                        "leave such samples out"
                    )
            yield batch

    def _unreadable(self) -> list[str]:
        """Return the error of every sample that is skipped, empty for the others."""
        if self._plan.config.on_error == "raise":
            return [""] * len(self._plan.images.samples)
        with load(self._plan, self._ranges) as loaded:
            checked = within_errors(loaded, self._plan)
            return [error for batch in checked for error in batch.errors]
