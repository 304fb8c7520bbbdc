"""Extract: dataset → batches → forward under capture → reduction → cast → shards → archive.

from pipeline.extract import Extraction, extract
archive = extract(Extraction(model=TorchvisionModel(name="resnet18"),
dataset=ImageFolder(root="photos"),
                             layers=LayerSelector(include=("layer1",)), archive="out/archive"))
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.archive.manifest import Manifest
from pipeline.archive.session import WritingSession
from pipeline.archive.stitch import missing_shards
from pipeline.capacity import check_fits, raise_file_limit
from pipeline.datasets.base import ImageDataset
from pipeline.errors import ConfigError, SampleError
from pipeline.execution import (
    OnError,
    Settings,
    Shard,
    Storage,
    StoredType,
    reproducible,
)
from pipeline.lanes import Lanes
from pipeline.layers import LayerSelector
from pipeline.loader import Loader
from pipeline.loading import Batch, batches, end_workers, worker_failure
from pipeline.models.base import ModelSource
from pipeline.planning import Plan, plan
from pipeline.progress import Progress
from pipeline.reductions import NoReduction, Reduction
from pipeline.signals import between_batches

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
        complete: whether it is stitched (not so after one part of several).
        skipped: samples that could not be used, 0 while it is not complete.
        missing: shards that other parts are still to write.
        written: samples whose rows this call wrote; the others were there.
    """

    archive: Path
    complete: bool
    skipped: int
    missing: int
    written: int


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
    if config.storage.dtype is StoredType.FLOAT16:
        log.warning(
            "float16: netCDF-4 readers and browser viewers cannot open it; h5py and h5netcdf can"
        )
    with reproducible(config.seed):
        work = plan(config)
        part = (config.shard.index, config.shard.count)
        with WritingSession.open(
            archive, work.manifest, part=part, resume=config.resume, filters=work.filters
        ) as session:
            if session.todo:
                raise_file_limit()
                check_fits(archive, session.manifest, session.todo)
                _run(config, work, session)
            else:
                log.info("nothing is left to extract")
            complete = session.finish()
            ranges = [session.manifest.shards[number] for number in session.todo]
    return Extracted(
        archive=archive,
        complete=complete is not None,
        skipped=int(complete["skipped"]) if complete else 0,
        missing=0 if complete else len(missing_shards(archive, session.manifest)),
        written=sum(stop - start for start, stop in ranges),
    )


def _run(config: Extraction, work: Plan, session: WritingSession) -> None:
    """Extract every row of the shards that are to do."""
    ranges = batch_ranges(session.manifest, session.todo, work.batch_size)
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
    with (
        between_batches() as stop,
        Lanes(config, work) as lanes,
        Progress("extract", total, done=total - left) as progress,
    ):
        try:
            for rows in lanes.rows(within_errors(loaded, work, config)):
                session.put(rows)
                progress.advance(len(rows.errors), nbytes=rows.nbytes)
                stop.check()
        except RuntimeError as error:
            failure = worker_failure(error, config.loader)
            if failure is None:
                raise
            stop.check()  # a signal to the whole process group also ends the workers
            raise failure from error
        finally:
            end_workers(loaded)


def batch_ranges(
    manifest: Manifest, shards: Sequence[int], batch_size: int
) -> list[tuple[int, int]]:
    """Return the row ranges of all batches of these shards; no batch crosses a shard."""
    return [
        (row, min(row + batch_size, stop))
        for start, stop in (manifest.shards[number] for number in shards)
        for row in range(start, stop, batch_size)
    ]


def within_errors(batches: Iterable[Batch], work: Plan, config: Extraction) -> Iterator[Batch]:
    """Pass batches on, and say which samples of them are skipped.

    Raises:
        SampleError: when none may be, or more than `max_errors` are.
    """
    skipped = 0
    for batch in batches:
        for row, error in enumerate(batch.errors, batch.start):
            if not error:
                continue
            sample = work.images.samples[row]
            line = f"sample {row} ({sample.path or sample.id}): {error}"
            if config.on_error is OnError.RAISE:
                raise SampleError(
                    f"{line}. on_error=skip leaves such samples out, marked in the archive"
                )
            log.warning("skipped %s", line)
            skipped += 1
        if config.max_errors is not None and skipped > config.max_errors:
            raise SampleError(
                f"more than max_errors={config.max_errors} samples could not be used; see the log"
            )
        yield batch
