"""Loading: batches of pixels in row order, through torch's DataLoader.

Workers read, decode, resize and crop. They return an unusable image's error as text, never as an
exception (an unpicklable one would hang the loader).
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.common.errors import ConfigError, FeaturemapsError, SampleError, one_line
from pipeline.common.machine import SHARED_MEMORY, cores, shared_memory
from pipeline.common.progress import size
from pipeline.common.signals import leave_to_parent
from pipeline.datasets.samples import Subset
from pipeline.extraction.pixels import Pixels, decoded, pixels_of, suits_gpu
from pipeline.extraction.settings import Loader
from pipeline.models.transforms import Transform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Consecutive samples.

    Attributes:
        start: row of the first.
        pixels: uint8 `(sample, channel, height, width)`; zeros where a sample could not be read.
        errors: error message of every sample; empty for good ones.
        files: index → JPEG file that the GPU decodes; its pixels are still missing.
    """

    start: int
    pixels: torch.Tensor
    errors: list[str]
    files: dict[int, bytes] = field(default_factory=dict)

    def pin_memory(self) -> Batch:
        """Return the batch with its pixels in page-locked memory (called by the DataLoader)."""
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class Batches:
    """Map-style dataset with one item per batch: rows `start` to `stop` of `ranges`."""

    images: Subset
    ranges: Sequence[tuple[int, int]]
    transform: Transform
    shape: tuple[int, int, int]
    loader: Loader

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, item: int) -> Batch:
        start, stop = self.ranges[item]
        pixels = torch.zeros((stop - start, *self.shape), dtype=torch.uint8)
        batch = Batch(start, pixels, [""] * (stop - start))
        for index in range(stop - start):
            with _failure_kept(batch, index):
                source = self.images.read(start + index)
                if suits_gpu(source, self.transform, self.loader):
                    batch.files[index] = source
                else:
                    self._keep(batch, index, decoded(source, self.transform, self.loader))
        return batch

    def decode_files(self, batch: Batch, device: torch.device) -> Batch:
        """Decode the files of a batch on the GPU, and damaged ones as Pillow does."""
        if not batch.files:
            return batch
        from pipeline.extraction.gpu_decoder import decode_on_gpu

        try:
            decoded = decode_on_gpu([*batch.files.values()], self.transform, device)
            batch.pixels[[*batch.files]] = decoded
        except RuntimeError:  # one of them is damaged, or has another shape
            for index, file in batch.files.items():
                with _failure_kept(batch, index):
                    self._keep(batch, index, pixels_of(file, self.transform, self.loader, device))
        return replace(batch, files={})

    def _keep(self, batch: Batch, index: int, pixels: Pixels) -> None:
        if pixels.shape != self.shape:
            raise SampleError(
                f"{pixels.shape[2]}×{pixels.shape[1]} pixels after the transform, other samples "
                f"have {self.shape[2]}×{self.shape[1]}; set model.transform.crop"
            )
        batch.pixels.numpy()[index] = pixels


@contextmanager
def _failure_kept(batch: Batch, index: int) -> Iterator[None]:
    """Store the message of an exception as the error of one sample."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - returned as data
        text = error if isinstance(error, FeaturemapsError) else f"{type(error).__name__}: {error}"
        batch.errors[index] = one_line(text) or "unreadable"


def worker_count(loader: Loader, device: torch.device, batches: int, batch_bytes: int) -> int:
    """Return the configured number of workers, or a suitable default.

    On a CPU the model uses every core, and the main process decodes fast enough for about eight.
    For a GPU the default is all cores but one, at most 8. It is 0 if shared memory is too small, or
    this process cannot start others (logged as a warning).
    """
    workers = loader.num_workers
    if workers is None and device.type == "cpu":
        workers = min(cores() // 8, batches)
    elif workers is None:
        workers = max(1, min(8, cores() - 1, batches))
    if workers and multiprocessing.current_process().daemon:  # of multiprocessing.Pool or Celery
        log.warning(
            "loader: images are decoded without worker processes: a daemonic process cannot start "
            "them"
        )
        return 0
    free, needed = shared_memory(), workers * (loader.prefetch + 1) * batch_bytes
    if workers and free is not None and free < needed:
        log.warning(
            "loader: images are decoded without worker processes: %d need %s of shared memory, "
            "%s has %s free; enlarge it (in a container: docker run --shm-size=2g)",
            workers, size(needed), SHARED_MEMORY, size(free),
        )  # fmt: skip
        return 0
    return workers


@contextmanager
def loading(batches: Batches, device: torch.device) -> Iterator[Iterator[Batch]]:
    """Load batches inside the block, with workers that are already started.

    Raises:
        SampleError: when a worker dies or hangs; torch raises it anywhere in the main thread.
    """
    loader, ranges = batches.loader, batches.ranges
    largest = max((stop - start for start, stop in ranges), default=0)
    workers = worker_count(loader, device, len(ranges), largest * math.prod(batches.shape))
    if workers and (obstacle := _unpicklable(batches)):
        if loader.num_workers is not None:
            raise ConfigError(
                f"loader.num_workers: the dataset cannot be sent to worker processes ({obstacle}); "
                "set loader.num_workers=0, or open files and connections in the dataset's read()"
            )
        log.warning(
            "loader: images are decoded without worker processes: the dataset cannot be sent to "
            "them (%s)", obstacle,
        )  # fmt: skip
        workers = 0
    items: Any = batches
    data: DataLoader[Batch] = DataLoader(
        items,
        batch_size=None,  # an item is a batch
        shuffle=False,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        timeout=loader.timeout if workers else 0,
        prefetch_factor=loader.prefetch if workers else None,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # leaves the caller's random numbers alone
    )
    loaded: Any = iter(data)
    try:
        yield (batches.decode_files(batch, device) for batch in loaded)
    except (RuntimeError, ConnectionError, EOFError) as error:
        lost = workers and not isinstance(error, RuntimeError)  # memory of a dead worker
        if not (lost or of_a_worker(error)):
            raise
        raise _worker_failure(error, loader) from error
    finally:
        if workers:  # at the interpreter's exit they would be killed with error messages
            with suppress(RuntimeError):
                loaded._shutdown_workers()


def _unpicklable(items: object) -> str:
    """Return why items cannot be pickled to worker processes; empty if they can, or need not be.

    Forked workers (the default on Linux up to Python 3.13) inherit them; others receive a pickle.
    """
    if multiprocessing.get_start_method() == "fork":
        return ""
    try:
        with Path(os.devnull).open("wb") as sink:
            ForkingPickler(sink).dump(items)
    except Exception as error:  # noqa: BLE001 - foreign objects raise anything
        return one_line(f"{type(error).__name__}: {error}", limit=200)
    return ""


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
    leave_to_parent()


def of_a_worker(error: BaseException) -> bool:
    """Return whether an error is the DataLoader's error about its workers."""
    return isinstance(error, RuntimeError) and "DataLoader" in str(error)


def _worker_failure(error: Exception, loader: Loader) -> SampleError:
    text = one_line(error, limit=200) or type(error).__name__
    if "timed out" in text:
        text = f"no batch for {loader.timeout} s (loader.timeout)"
    elif multiprocessing.get_start_method() != "fork":
        text += " (workers import the main script; guard it with if __name__ == '__main__')"
    return SampleError(
        f"loader: a worker process failed: {text}; finished shards are kept. Set "
        "loader.num_workers=0 to see the cause, or run the same command again to resume"
    )
