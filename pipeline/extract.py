"""Extract: dataset → batches → forward under capture → reduction → cast → shards → archive.

from pipeline.extract import Extraction, extract
archive = extract(Extraction(model=TorchvisionModel(name="resnet18"),
dataset=ImageFolder(root="photos"),
                             layers=LayerSelector(include=("layer1",)), archive="out/archive"))
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import statistics
from pipeline.archive.manifest import Manifest
from pipeline.archive.session import WritingSession
from pipeline.archive.writer import Rows
from pipeline.capture import capture, copied
from pipeline.datasets.base import ImageDataset
from pipeline.errors import ConfigError, LayerError, SampleError
from pipeline.execution import (
    OnError,
    OnNonfinite,
    Precision,
    Settings,
    Shard,
    Storage,
    reproducible,
)
from pipeline.layers import Layer, LayerSelector
from pipeline.loader import Loader
from pipeline.loading import Batch, batches
from pipeline.models.base import ModelSource
from pipeline.planning import Plan, plan
from pipeline.progress import Progress
from pipeline.reductions import NoReduction, Reduction

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Extraction(Settings):
    """What to extract; the scalar settings are `Settings`'."""

    model: ModelSource
    dataset: ImageDataset
    layers: LayerSelector = LayerSelector()
    reduction: Reduction = NoReduction()
    loader: Loader = Loader()
    storage: Storage = Storage()
    shard: Shard = Shard()


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What an extraction made.

    Attributes:
        archive: its folder.
        complete: whether every shard is there (not so after one part of several).
        skipped: samples that could not be used.
    """

    archive: Path
    complete: bool
    skipped: int


def extract(config: Extraction) -> Extracted:
    """Write the activations of a model over a dataset to an archive, or go on where an earlier run
    stopped.

    Raises:
        ConfigError: when the configuration cannot be carried out, or differs from an existing
            archive's.
        SampleError: when an image cannot be used and `on_error` is `raise`, or too many cannot.
        ArchiveError, DiskFullError: when writing fails; finished shards are kept.
    """
    if config.archive is None:
        raise ConfigError("archive: give the folder to write to, e.g. archive=outputs/archive")
    archive = Path(config.archive).expanduser()
    with reproducible(config.seed):
        work = plan(config)
        part = (config.shard.index, config.shard.count)
        with WritingSession.open(
            archive, work.manifest, part=part, resume=config.resume, filters=work.filters
        ) as session:
            if session.todo:
                _run(config, work, session)
            else:
                log.info("nothing is left to extract")
            complete = session.finish()
    skipped = int(complete["skipped"]) if complete else 0
    return Extracted(archive=archive, complete=complete is not None, skipped=skipped)


def _run(config: Extraction, work: Plan, session: WritingSession) -> None:
    """Extract every row of the shards that are to do."""
    ranges = batch_ranges(session.manifest, session.todo, config.loader.batch_size)
    observed = work.observed
    loaded = batches(
        work.images,
        ranges,
        loader=config.loader,
        transform=observed.model.transform,
        shape=observed.image_shape,
        device=observed.device,
    )
    session.start()
    total = len(work.images.samples)
    left = sum(stop - start for start, stop in ranges)
    skipped = 0
    forward = Forward(config, work)
    with Progress("extract", total, done=total - left) as progress:
        for batch in loaded:
            skipped += check_errors(batch, work, config, skipped)
            rows = forward(batch)
            session.put(rows)
            progress.advance(len(batch.errors), nbytes=rows.nbytes)


def batch_ranges(
    manifest: Manifest, shards: Sequence[int], batch_size: int
) -> list[tuple[int, int]]:
    """Return the row ranges of all batches of these shards; no batch crosses a shard."""
    return [
        (row, min(row + batch_size, stop))
        for start, stop in (manifest.shards[number] for number in shards)
        for row in range(start, stop, batch_size)
    ]


def check_errors(batch: Batch, work: Plan, config: Extraction, skipped: int) -> int:
    """Return how many samples of a batch are to be skipped.

    Raises:
        SampleError: when none may be, or more than `max_errors` are.
    """
    found = [(batch.start + i, error) for i, error in enumerate(batch.errors) if error]
    for row, error in found:
        sample = work.images.samples[row]
        line = f"sample {row} ({sample.path or sample.id}): {error}"
        if config.on_error is OnError.RAISE:
            raise SampleError(
                f"{line}. on_error=skip leaves such samples out, marked in the archive"
            )
        log.warning("skipped %s", line)
    if config.max_errors is not None and skipped + len(found) > config.max_errors:
        raise SampleError(
            f"more than max_errors={config.max_errors} samples could not be used; see the log"
        )
    return len(found)


class Forward:
    """One forward pass: a batch of pixels in, the rows of the archive out."""

    def __init__(self, config: Extraction, work: Plan) -> None:
        """Prepare for the selected layers."""
        self._config = config
        self._work = work
        self._layers = {layer.name: layer for layer in work.layers}
        self._dtype = torch.float16 if config.storage.dtype == "float16" else torch.float32

    def __call__(self, batch: Batch) -> Rows:
        """Return the rows of a batch.

        Raises:
            LayerError: when a layer returns another shape than in the dry batch, overflows float16,
                or holds NaN or infinity and `on_nonfinite` is `raise`.
        """
        model, device = self._work.observed.model, self._work.observed.device
        module = model.module
        assert not any(part.training for part in module.modules()), "a module is in training mode"
        images = model.transform.normalize(batch.pixels.to(device, non_blocking=True))
        with (
            torch.inference_mode(),
            self._autocast(device),
            capture(module, list(self._layers), process=self._keep) as activations,
        ):
            module(images)
        kept: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
        figures = {}
        for name, layer in self._layers.items():
            found = activations.calls(name)
            if len(found) != 1:
                raise LayerError(
                    f"layers: {name} was called {len(found)} times in the batch at row "
                    f"{batch.start}, once "
                    "in the dry batch; its calls depend on the images"
                )
            activation = next(iter(found.values()))
            axes = self._config.reduction.axes(layer.axes)
            figures[name] = statistics.of_batch(activation, 1 + axes.index("channel"))
            self._check_finite(name, figures[name], batch)
            kept[name] = self._cast(name, activation, figures[name]).cpu().numpy()
        samples = self._work.images.samples[batch.start : batch.start + len(batch.errors)]
        return Rows(
            start=batch.start,
            images=batch.pixels.numpy(),
            activations=kept,
            statistics=figures,
            samples=[(s.id, s.label, s.label_name, s.path) for s in samples],
            errors=batch.errors,
        )

    def _autocast(self, device: torch.device) -> torch.autocast | nullcontext[None]:
        if self._config.precision is Precision.FLOAT32:
            return nullcontext()
        dtype = torch.bfloat16 if self._config.precision is Precision.BFLOAT16 else torch.float16
        return torch.autocast(device.type, dtype=dtype)

    def _keep(self, name: str, output: Tensor) -> Tensor:
        """Check, reduce and copy what a layer returned; runs inside the hook, on the device."""
        layer: Layer = self._layers[name]
        if tuple(output.shape[1:]) != layer.shape:
            raise LayerError(
                f"layers: {name} returned shape {tuple(output.shape[1:])} per sample, "
                f"{layer.shape} in the dry "
                "batch; layers whose shape varies cannot be archived"
            )
        reduced = self._config.reduction(output.detach(), layer.axes)
        return copied(reduced, torch.float32)

    def _check_finite(self, name: str, figures: statistics.SampleStatistics, batch: Batch) -> None:
        bad = figures.nonfinite.sum(axis=1)
        if self._config.on_nonfinite is OnNonfinite.RAISE and bad.any():
            row = batch.start + int(np.argmax(bad > 0))
            raise LayerError(
                f"layers: {name} returned {int(bad.max())} NaN or infinite values for sample {row}"
            )

    def _cast(self, name: str, activation: Tensor, figures: statistics.SampleStatistics) -> Tensor:
        if self._dtype is torch.float32:
            return activation
        limit = torch.finfo(self._dtype).max
        largest = max(float(figures.max.max()), -float(figures.min.min()))
        if largest > limit:
            raise LayerError(
                f"storage.dtype: {name} reaches {largest:.6g}, float16 ends at {limit:.0f}; use "
                "storage.dtype=float32"
            )
        return activation.to(self._dtype)
