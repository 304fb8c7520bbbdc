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
from dataclasses import dataclass, replace
from enum import StrEnum
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.common.configured import Natural, Positive, configured
from pipeline.common.errors import ConfigError, FeaturemapsError, SampleError, one_line
from pipeline.common.machine import SHARED_MEMORY, cores, shared_memory
from pipeline.common.progress import size
from pipeline.common.signals import leave_to_parent
from pipeline.datasets.decoding import Decoding, decode
from pipeline.datasets.samples import Subset
from pipeline.models.transforms import Transform

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_COMPARED = 8
"""Samples whose pixels are compared between decoders."""


class Decoder(StrEnum):
    """Decoder of JPEG files."""

    PILLOW = "pillow"
    TURBO = "turbo"


@configured
class Loader:
    """Batching and workers.

    Attributes:
        batch_size: samples per forward pass. Values differ between batch sizes by rounding, so it
            is part of the archive's fingerprint. None chooses: 8 on a CPU (larger batches exceed
            its caches and are slower), 64 on a GPU; fewer if a batch's selected activations would
            exceed 64 MiB (GPU: 512 MiB) or the GPU's memory.
        num_workers: processes that decode; 0 decodes in the main process. None chooses: on a CPU
            one for every eight cores (0 below eight), for a GPU all cores but one, at most 8.
        prefetch: batches that each worker prepares ahead.
        timeout: seconds without a batch after which workers count as hung.
        decoder: `pillow` decodes all pixels; `turbo` decodes JPEG files at 1/2, 1/4 or 1/8
            of their size if the transform makes them smaller still: faster, but the pixels
            differ; the manifest records by how much (`environment.decoder_difference`).
        decoding: which image files are accepted, and how they are decoded.
    """

    batch_size: Positive | None = None
    num_workers: Natural | None = None
    prefetch: Positive = 2
    timeout: Positive = 300
    decoder: Decoder = Decoder.PILLOW
    decoding: Decoding = Decoding()


@dataclass(frozen=True)
class Batch:
    """Consecutive samples.

    Attributes:
        start: row of the first.
        pixels: uint8 `(sample, channel, height, width)`; zeros where a sample could not be read.
        errors: error message of every sample; empty for good ones.
    """

    start: int
    pixels: torch.Tensor
    errors: list[str]

    def pin_memory(self) -> Batch:
        """Return the batch with its pixels in page-locked memory (called by the DataLoader)."""
        return Batch(self.start, self.pixels.pin_memory(), self.errors)


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
        import torch

        start, stop = self.ranges[item]
        pixels = np.zeros((stop - start, *self.shape), dtype=np.uint8)
        errors = []
        for row in range(start, stop):
            try:
                image = read_pixels(self.images, row, self.transform, self.loader)
                if image.shape != self.shape:
                    raise SampleError(
                        f"{image.shape[2]}×{image.shape[1]} pixels after the transform, other "
                        f"samples have {self.shape[2]}×{self.shape[1]}; set model.transform.crop"
                    )
                pixels[row - start] = image
                errors.append("")
            except Exception as error:  # noqa: BLE001 - returned as data
                ours = isinstance(error, FeaturemapsError)
                errors.append(
                    one_line(error if ours else f"{type(error).__name__}: {error}") or "unreadable"
                )
        return Batch(start, torch.from_numpy(pixels), errors)


def read_pixels(images: Subset, row: int, transform: Transform, loader: Loader) -> Pixels:
    """Return the pixels of one sample after the transform, uint8 `(channel, height, width)`."""
    smallest = None
    # Without a fixed size, the rounded aspect ratio of a smaller image could change the shape.
    if loader.decoder is Decoder.TURBO and transform.size is not None and transform.resize:
        smallest = max(transform.resize)
    return transform.pixels(decode(images.read(row), loader.decoding, smallest=smallest))


def decoder_difference(images: Subset, transform: Transform, loader: Loader) -> dict[str, float]:
    """Return how the pixels of the first readable samples differ from those of `pillow`.

    Returns:
        `samples`, and `mean` and `max` of |difference| of levels 0..255; empty for `pillow`.
    """
    if loader.decoder is Decoder.PILLOW:
        return {}
    reference = replace(loader, decoder=Decoder.PILLOW)
    differences = []
    for row in range(min(len(images.samples), _COMPARED)):
        with suppress(SampleError):
            pixels, expected = (
                read_pixels(images, row, transform, of) for of in (loader, reference)
            )
            differences.append(np.abs(pixels.astype(np.int16) - expected))
    return {
        "samples": len(differences),
        "mean": float(np.mean([d.mean() for d in differences] or [0.0])),
        "max": float(max((d.max() for d in differences), default=0)),
    }


def image_shape(images: Subset, transform: Transform, loader: Loader) -> tuple[int, int, int]:
    """Return channel, height and width of the inputs, by the transform or the first sample."""
    if transform.size is not None:
        return (transform.channels, *transform.size)
    fault: SampleError | None = None
    for row in range(len(images.samples)):
        try:
            channels, height, width = read_pixels(images, row, transform, loader).shape
            return (channels, height, width)
        except SampleError as error:
            fault = fault or error
    raise SampleError(
        f"dataset: no image can be read (of {len(images.samples)}); the first: {fault}"
    )


def worker_count(loader: Loader, device: torch.device, batches: int, batch_bytes: int) -> int:
    """Return the configured number of workers, or a suitable default.

    On a CPU the model uses every core, and the main process decodes fast enough for about eight.
    For a GPU the default is all cores but one, at most 8. It is 0 if shared memory is too small
    (logged as a warning).
    """
    workers = loader.num_workers
    if workers is None and device.type == "cpu":
        workers = min(cores() // 8, batches)
    elif workers is None:
        workers = max(1, min(8, cores() - 1, batches))
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
    import torch
    from torch.utils.data import DataLoader

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
        yield loaded
    except RuntimeError as error:
        if not of_a_worker(error):
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
    import torch

    torch.set_num_threads(1)
    leave_to_parent()


def of_a_worker(error: Exception) -> bool:
    """Return whether an error is the DataLoader's error about its workers."""
    return isinstance(error, RuntimeError) and "DataLoader" in str(error)


def _worker_failure(error: RuntimeError, loader: Loader) -> SampleError:
    text = one_line(error, limit=200)
    if "timed out" in text:
        text = f"no batch for {loader.timeout} s (loader.timeout)"
    elif multiprocessing.get_start_method() != "fork":
        text += " (workers import the main script; guard it with if __name__ == '__main__')"
    return SampleError(
        f"loader: a worker process failed: {text}; finished shards are kept. Set "
        "loader.num_workers=0 to see the cause, or run the same command again to resume"
    )
