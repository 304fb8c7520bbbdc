"""Shuffled batches of stored activations, for training on data larger than memory.

Threads read the rows without holding the GIL: no worker processes are needed, and apart from the
reservoir each row is in memory once.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import islice, starmap
from typing import Any, Literal

import numpy as np
import torch

from pipeline.archive.format.layer_entry import layer_named
from pipeline.archive.format.row_ranges import part_of
from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.differences import differences
from pipeline.common.errors import ConfigError, member, whole
from pipeline.common.places import Place
from pipeline.common.several import several
from pipeline.training.batches import BatchType, LoadedBatch, Transfer
from pipeline.training.block_shuffle import block_shuffled, permuted
from pipeline.training.normalization import Normalize, scaling
from pipeline.training.sample_filter import Ids, Labels, filtered_rows
from pipeline.training.sample_groups import SampleGroups, divided
from pipeline.training.sample_source import PLACES, Rows, RowStore, SampleSource, Tokens

RUN_BYTES = 8 * 2**20
Shuffle = Literal["blocks", "full", "none"]


class ActivationLoader:
    """Iterable of batches of stored activations; each iteration is one epoch.

    >>> loader = ActivationLoader("outputs/run/archive", "layer4", 64)  # doctest: +SKIP
    ... for epoch in range(3):
    ...     for batch in loader:
    ...         train(batch.activations["layer4"], batch.labels)

    The order of an epoch depends only on the seed and the epoch, not on the number of threads.
    Each of several processes takes its share; every sample belongs to exactly one share.
    """

    def __init__(
        self,
        archive: str | Place | RowStore,
        layers: str | Sequence[str],
        batch_size: int,
        *,
        shuffle: str = "blocks",
        seed: int = 0,
        positions: int = 0,
        tokens: str | None = None,
        normalize: str = "none",
        images_per_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        rows: Sequence[int] | None = None,
        labels: Labels | None = None,
        ids: Ids | None = None,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        dtype: str | None = None,
        run_bytes: int = RUN_BYTES,
        reservoir: int = 64,
        memory: int = 2**30,
        num_threads: int = 2,
        storage_options: Mapping[str, str] | None = None,
        cache: str = "",
    ) -> None:
        """Open an archive.

        Args:
            archive: folder of the archive, a packed file, or a URL of one.
            layers: names or aliases; they are the keys of the activations.
            batch_size: samples per batch.
            shuffle: order of an epoch: `blocks` (files are read in long runs, then mixed), a
                uniformly random `full` permutation, or `none`.
            seed: of the order and the positions.
            positions: number of random positions per sample and epoch, without prefix tokens
                unless `tokens` includes them, instead of whole maps or token sequences; 0 returns
                all.
            tokens: `patch` (tokens after the prefix tokens, and the positions of maps), `class`,
                `register` (the other prefix tokens) or `all`. Activations are vectors of these
                tokens, `(sample · vector, channel)`.
            normalize: `none`, `mean` (x - mean), `standard` ((x - mean) / std, per channel) or
                `rms` (x / rms, one scalar per layer). Activations are then float32. The statistics
                are the archive's: over all stored samples, also those not selected, before rounding
                to the stored type, and without prefix tokens, which are refused.
            images_per_batch: number of samples that the vectors of a batch come from, a multiple of
                `batch_size` (the default): a batch has as many vectors as `batch_size` samples,
                but evenly from more samples, which are in memory together.
            rank: index of this process; each reads its own share of the rows.
            world_size: number of processes; their shares may differ by one sample, and so without
                `drop_last` their numbers of batches by one.
            rows: rows of the samples to use, such as a training set, or a boolean mask of all rows;
                skipped samples are always omitted.
            labels: labels or label names of the samples to use.
            ids: ids of the samples to use, or a function of an id that returns whether to use it.
            drop_last: whether to omit a last batch that is not full; then all processes have the
                same number of batches.
            device: of the activations and labels, e.g. `cuda`; the next batch is copied while one
                is used.
            dtype: `float32`, `bfloat16` or `float16`; None keeps the stored dtype (bfloat16 is read
                as float32).
            run_bytes: bytes of consecutive rows to read at once.
            reservoir: number of batches to mix with `shuffle="blocks"`.
            memory: maximum bytes of the reservoir.
            num_threads: number of reading threads.
            storage_options, cache: see `Archive.open`.

        Raises:
            ArchiveError: when the archive is not complete.
            ConfigError, LayerError: when an option is out of range or a layer does not exist.
        """
        group = batch_size if images_per_batch is None else images_per_batch
        numbers = {
            "batch_size": (batch_size, 1), "positions": (positions, 0), "seed": (seed, 0),
            "rank": (rank, 0), "world_size": (world_size, 1), "images_per_batch": (group, 0),
            "run_bytes": (run_bytes, 1), "reservoir": (reservoir, 1), "memory": (memory, 1),
            "num_threads": (num_threads, 1),
        }  # fmt: skip
        (
            batch_size, positions, seed, rank, world_size, group, run_bytes, reservoir, memory,
            threads,
        ) = (whole(f"{name}:", *number) for name, number in numbers.items())  # fmt: skip
        if rank >= world_size:
            raise ConfigError(f"rank: must be below world_size={world_size}, got {rank}")
        opened: RowStore = (
            Archive.open(archive, storage_options=storage_options, cache=cache)  # type: ignore[arg-type]
            if isinstance(archive, str | Place) or not hasattr(archive, "manifest")
            else archive
        )
        entries = {
            key: layer_named(opened.manifest.layers, key, where="layers") for key in several(layers)
        }
        self._labels = np.full(len(opened), -1, np.int64)
        for sample in opened.samples:
            if not sample.error:
                self._labels[sample.index] = sample.label
        self._stored = filtered_rows(opened.samples, rows, labels, ids)
        self._shuffle = member(Shuffle, shuffle, "shuffle: unknown value")
        kind = None if tokens is None else member(Tokens, tokens, "tokens: unknown value")
        normalization = member(Normalize, normalize, "normalize: unknown value")
        self._transfer = Transfer(
            device, None if dtype is None else member(BatchType, dtype, "dtype: unknown value")
        )
        self._seed, self._part = seed, (rank, world_size)
        self._batch_size, self._drop_last = batch_size, drop_last
        self._group = group
        self._source = SampleSource(
            opened, entries, positions, kind, seed, threads, permuted=self._group > batch_size
        )
        largest = batch_size * (self._source.vectors or 1)
        if self._group % batch_size or not batch_size <= self._group <= largest:
            raise ConfigError(
                f"images_per_batch must be a multiple of batch_size, at most {largest}, the "
                f"vectors of a batch (see positions and tokens); got {group}"
            )
        self._scaling = {}
        for key in entries if normalization != "none" else ():
            if not isinstance(opened, Archive):
                raise ConfigError(
                    "normalize: a stream has no statistics; use normalize=none, or extract an "
                    "archive"
                )
            if self._source.includes_prefix(key):
                raise ConfigError(
                    f"normalize: the statistics of layer {key} do not cover prefix tokens; use "
                    "tokens=patch"
                )
            self._scaling[key] = scaling(normalization, opened.layer(key).statistics)
        row_bytes = max(1, sum(entry.sample_bytes for entry in entries.values()))
        run, forward = max(1, run_bytes // row_bytes), opened.manifest.batch_size
        self._run = run - run % forward or run  # a stream computes whole batches
        self._reservoir = max(
            1, min(reservoir * batch_size, memory // max(1, self._source.sample_bytes))
        )
        self._options: dict[str, Any] = {
            "seed": seed, "shuffle": shuffle, "batch_size": batch_size,
            "world_size": world_size, "positions": positions,
            "tokens": tokens, "normalize": normalize, "images_per_batch": self._group,
            "samples": len(self._stored), "rows": sha256(self._stored.tobytes()).hexdigest()[:16],
            "run": self._run, "reservoir": self._reservoir,
        }  # fmt: skip
        self._groups = SampleGroups(self._source, self._group)
        self.epoch = 0
        self._done = 0
        self._resumed = False

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        if self._drop_last:
            return len(self._stored) // self._part[1] // self._batch_size
        return -(-len(part_of(len(self._stored), *self._part)) // self._batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the loader (epoch and batches yielded) and its order's options.

        After the last batch of an epoch it is the start of the next one.
        """
        return {"epoch": self.epoch, "batches": self._done, "options": dict(self._options)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a loader with the same options, of this or another process.

        Raises:
            ConfigError: when the state was saved with other options, or is not a loader's.
        """
        try:
            epoch, done = (whole(f"state: {key}:", state[key], 0) for key in ("epoch", "batches"))
            lines = differences(state["options"], self._options)
        except (KeyError, TypeError) as error:
            raise ConfigError("the state was not made by a loader's state_dict()") from error
        if lines or done > len(self):
            lines = lines or [f"batches: {len(self)} in an epoch, got {done}"]
            raise ConfigError(
                f"the loader's state was saved with other options ({'; '.join(lines)})"
            )
        self.epoch, self._done, self._resumed = epoch, done, True

    def close(self) -> None:
        """Close the archive's files and stop the threads."""
        self._source.close()

    def __iter__(self) -> Iterator[LoadedBatch]:
        """Yield the batches of an epoch: of the next one, also if the last was left early, or after
        `load_state_dict` the remaining ones of its epoch.

        Raises:
            ArchiveError: naming the shard, when a row is damaged.
            ConfigError: when another iteration moved the loader's position, or float16 cannot hold
                a value.
        """
        epoch, first = self.epoch + (self._done > 0), 0
        if self._resumed:
            epoch, first, self._resumed = self.epoch, self._done, False
        seed = (self._seed, epoch)
        parts = self._group // self._batch_size
        if self._shuffle == "blocks":
            order = block_shuffled(self._stored, self._run, self._reservoir, seed, self._part)
            groups = self._groups.mixed(order, first // parts * self._group, epoch)
        else:
            shuffled = self._shuffle == "full"
            rows = permuted(self._stored, seed, self._part, shuffle=shuffled)
            groups = self._groups.in_order(rows[first // parts * self._group :], epoch)
        divided_groups = divided(groups, self._batch_size, self._source.vectors)
        loaded = map(
            self._transfer.start, starmap(self._batch, islice(divided_groups, first % parts, None))
        )
        with ThreadPoolExecutor(1) as prefetcher:  # read the next group while this one is used
            futures = deque(prefetcher.submit(next, loaded, None) for _ in range(parts))
            for number in range(first, len(self)):
                transferred = futures.popleft().result()
                assert transferred is not None
                futures.append(prefetcher.submit(next, loaded, None))
                position = (epoch, number + 1) if number + 1 < len(self) else (epoch + 1, 0)
                self.epoch, self._done = position
                yield self._transfer.finish(*transferred)
                if (self.epoch, self._done) != position:
                    raise ConfigError(
                        "another iteration over this loader moved its position; use a loader for "
                        "each"
                    )

    def _batch(self, rows: Array, values: Rows) -> LoadedBatch:
        source = self._source
        positions = {
            key: torch.from_numpy(values[PLACES + key])
            for key in source.layers
            if PLACES + key in values
        }
        for key, scaled in self._scaling.items():
            axis = -1 if source.vectors else source.layers[key].channel_axis
            values[key] = scaled(values[key], axis)
        tensors = {key: torch.from_numpy(values[key]) for key in source.layers}
        if source.vectors:
            tensors = {key: tensor.flatten(0, 1) for key, tensor in tensors.items()}
            positions = {key: tensor.flatten() for key, tensor in positions.items()}
        repeated = np.repeat(rows, source.vectors or 1) if rows.ndim == 1 else rows.ravel()
        return LoadedBatch(
            activations=tensors,
            labels=torch.from_numpy(self._labels[repeated]),
            rows=torch.from_numpy(repeated),
            positions=positions,
        )
