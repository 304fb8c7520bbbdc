"""Extract: dataset → batches → forward under capture → reduction → cast → shards → archive."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from pipeline.archive.format.manifest import Manifest, missing_shards
from pipeline.archive.writing.archive_writer import ArchiveWriter
from pipeline.archive.writing.resume import refuse_other_pixels
from pipeline.common.errors import ConfigError, SampleError, one_line, plural
from pipeline.common.places import Place, refuse_read_only
from pipeline.common.progress import Progress
from pipeline.common.signals import between_batches
from pipeline.extraction.devices import reproducible
from pipeline.extraction.disk_check import check_fits, raise_file_limit
from pipeline.extraction.loader import Batch, Batches, loading
from pipeline.extraction.pixels import pixels_of
from pipeline.extraction.plan import Plan, make_plan
from pipeline.extraction.replicas import ModelReplicas
from pipeline.extraction.settings import Extraction, checked
from pipeline.extraction.several_devices import SentProgress, extract_on_devices

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """The result of an extraction.

    Attributes:
        archive: the archive's folder.
        complete: whether the archive is finalized; the part that finishes last does it.
        skipped: number of samples that could not be used; 0 until the archive is complete.
        missing: number of shards that other parts still have to write.
        written: number of samples whose rows this call wrote; the others existed.
        seconds: time for writing them, without loading the model and the dummy forward.
    """

    archive: Place
    complete: bool
    skipped: int
    missing: int
    written: int
    seconds: float


def extract(config: Extraction, check: Callable[[Plan], None] | None = None) -> Extracted:
    """Write the activations of a model over a dataset to an archive, or resume an earlier run.

    Example:
        extraction = pipeline.Extraction(
            model=pipeline.TorchvisionModel(name="resnet18", weights=None),
            dataset=pipeline.SampleImages(limit=2),
            layers=pipeline.LayerSelector(include=("layer1", "layer4")),
            archive="outputs/archive",
        )
        made = pipeline.extract(extraction)

    Args:
        config: what to extract, and how.
        check: called with the plan before anything is written; its exceptions end the extraction.

    Raises:
        ConfigError: when the configuration cannot be carried out, or differs from an existing
            archive's.
        SampleError: when an image cannot be used and `on_error` is `raise`, or too many cannot.
        ArchiveError, DiskFullError: when writing fails; finished shards are kept.
    """
    if checked(config).place is None:
        raise ConfigError("archive: no folder is given; set archive=, e.g. archive=outputs/archive")
    if config.devices:
        return extract_on_devices(config, check, _extract)
    return _extract(config, check)


def _extract(
    config: Extraction,
    check: Callable[[Plan], None] | None,
    progress: type[Progress | SentProgress] = Progress,
) -> Extracted:
    archive = config.place
    assert archive is not None
    refuse_read_only(archive)
    if config.storage.dtype == "float16":
        log.warning("float16: netCDF4 and browser viewers cannot read it; h5py and h5netcdf can")
    if config.storage.dtype == "bfloat16":
        log.warning("bfloat16: browser viewers cannot read it; h5py, xarray and h5dump can")
    with reproducible(config.seed, compiled=config.compile):
        plan = make_plan(config)
        if check is not None:
            check(plan)
        part = (config.shard.index, config.shard.count)
        with ArchiveWriter.open(
            archive, plan.manifest, part=part, resume=config.resume, filters=plan.filters,
            first_samples=plan.first_samples,
        ) as session:  # fmt: skip
            refuse_other_pixels(
                archive, session.manifest, plan.manifest, session.shards,
                lambda row: pixels_of(plan.images.read(row), plan.traced.model.transform,
                                      config.loader, plan.traced.device),
            )  # fmt: skip
            if config.on_error == "raise" and (skipped := session.count_skipped()):
                raise ConfigError(
                    f"archive: {archive} leaves out {plural(skipped, 'sample')} that could not be "
                    "used; set on_error=skip to continue it, or use another archive="
                )
            stored = session.manifest  # perhaps of an earlier run
            batch_size = stored.batch_size  # values depend on it by rounding
            if batch_size != plan.manifest.batch_size:
                log.info("archive: resuming with the original batch size (%d)", batch_size)
            plan = replace(plan, manifest=stored)
            start = time.monotonic()
            if session.todo:
                raise_file_limit()
                check_fits(archive, session.manifest, session.todo)
                _run(plan, session, progress)
            else:
                log.info("archive: all shards are written already")
            complete = session.finish()
            seconds = time.monotonic() - start
            ranges = [session.manifest.shards[number] for number in session.todo]
        complete = complete or session.join()
    return Extracted(
        archive=archive,
        complete=complete is not None,
        skipped=complete.skipped if complete else 0,
        missing=0 if complete else len(missing_shards(archive, session.manifest)),
        written=sum(last - first for first, last in ranges),
        seconds=seconds,
    )


def _run(plan: Plan, session: ArchiveWriter, shown: type[Progress | SentProgress]) -> None:
    ranges = batch_ranges(session.manifest, session.todo, plan.batch_size)
    finished = batch_ranges(session.manifest, [*session.shards], plan.batch_size)
    done, remaining = (sum(stop - start for start, stop in rows) for rows in (finished, ranges))
    with load(plan, ranges) as loaded:
        session.start()
        with (
            between_batches() as stop,
            ModelReplicas(plan) as replicas,
            shown("extract", done + remaining, done=done) as progress,
        ):
            try:
                for rows in replicas.run(within_errors(loaded, plan)):
                    session.put(rows)
                    progress.advance(len(rows.errors), nbytes=rows.nbytes)
                    stop.check()
            except Exception:
                stop.check()  # a signal to the whole process group also ends the workers
                raise


def load(plan: Plan, ranges: Sequence[tuple[int, int]]) -> AbstractContextManager[Iterator[Batch]]:
    """Load the batches of these row ranges inside the block."""
    traced = plan.traced
    transform, shape = traced.model.transform, traced.image_shape
    batches = Batches(plan.images, ranges, transform, shape, plan.config.loader)
    return loading(batches, traced.device)


def batch_ranges(
    manifest: Manifest, shards: Sequence[int], batch_size: int
) -> list[tuple[int, int]]:
    """Return the row ranges of all batches of these shards; no batch crosses a shard boundary."""
    return [
        (row, min(row + batch_size, stop))
        for start, stop in (manifest.shards[number] for number in shards)
        for row in range(start, stop, batch_size)
    ]


def within_errors(batches: Iterable[Batch], plan: Plan) -> Iterator[Batch]:
    """Yield the batches; log skipped samples, or raise SampleError, as `on_error` says."""
    config, skipped = plan.config, 0
    for batch in batches:
        for row, error in enumerate(batch.errors, batch.start):
            if not error:
                continue
            sample = plan.images.samples[row]
            text = error.removeprefix(f"{sample.path}: ")
            line = one_line(f"sample {row} ({sample.path or sample.id}): {text}")
            if config.on_error == "raise":
                raise SampleError(
                    f"{line}; set on_error=skip to leave such samples out, marked in the archive"
                )
            log.warning("skipped %s", line)
            skipped += 1
        if config.max_errors is not None and skipped > config.max_errors:
            raise SampleError(
                f"more than max_errors={config.max_errors} samples could not be used; see the log"
            )
        yield batch
