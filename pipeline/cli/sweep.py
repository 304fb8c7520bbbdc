"""Sweeps: the status of each job, summarized in a table and a page.

Hydra lets the other jobs finish when one fails, but leaves no traceback in the failed job's log and
reports only the first failure. `SweepStatus` is a Hydra callback that corrects this: it writes
`status.json` into each job's folder, also where the sweep was started, the traceback into its log,
and `summarize` gathers them into `catalogue.csv`, `index.html` and a table.

Folder names are chosen when the sweep starts, from the keys that vary, and written to `jobs.json`.
The configuration interpolates them; each job process imports this module for the callback.
"""

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from pipeline.archive.format.completion import Complete
from pipeline.archive.format.schema import COMPLETE, archives_of
from pipeline.cli import sweep_jobs
from pipeline.cli.job_names import name_jobs
from pipeline.cli.quoting import parsed_override
from pipeline.common.atomic_files import as_csv, read_json, write_bytes, write_json
from pipeline.common.errors import FeaturemapsError, one_line
from pipeline.common.natural_order import natural_order
from pipeline.common.places import Place, first_missing, place
from pipeline.common.progress import size, table

STATUS = "status.json"
CATALOGUE = "catalogue.csv"
ARCHIVES = "archives"
SIMILARITY = "similarity"
_RUNNING = {"state": "running", "seconds": ""}
_INTERRUPTED = {
    "state": "interrupted",
    "error": "the sweep was interrupted before this job reported a status",
}
_DIED = {"state": "died", "error": "the process exited without reporting a status"}
_COLUMNS = ("job", "state", "images", "bytes", "images_per_second", "seconds", "overrides",
            "archive", "error")  # fmt: skip


def _archive_folder() -> str:
    """Return the value of `${archive_folder:}`: in the run folder, or shared by jobs of a sweep."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        missing = OmegaConf.is_missing(hydra.runtime, "output_dir")  # with --cfg job --resolve
        return f"{hydra.run.dir if missing else hydra.runtime.output_dir}/archive"
    names = sweep_jobs.names_of(hydra.sweep.dir, hydra.overrides.task, hydra.runtime.choices)
    return str(Path(hydra.sweep.dir).absolute() / ARCHIVES / names.archive)


OmegaConf.register_new_resolver(
    "job_folder", lambda *job: sweep_jobs.names_of(*job).job, replace=True
)
OmegaConf.register_new_resolver("archive_folder", _archive_folder, replace=True)


def is_sweep() -> bool:
    """Return whether the running job belongs to a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


class SweepStatus(Callback):
    """Hydra callback that records the result of each job of a sweep."""

    folder: Path | None = None
    """Folder of the sweep that this process has started, None where it has started none."""
    jobs: Sequence[str] = ()
    """Names of its jobs."""
    started = 0.0
    """Time at which this process's job started, of `time.monotonic`."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Choose the names of the jobs; raise if jobs would share a folder."""
        sweep_jobs.expand_globs(config)
        jobs = sweep_jobs.jobs_of(config)
        own_folders = sweep_jobs.own_folders(config, jobs)
        folder = Path(config.hydra.sweep.dir).absolute()
        SweepStatus.jobs = own_folders
        if jobs:
            previous = sweep_jobs.read_jobs(folder)
            names = name_jobs(jobs, config.hydra.runtime.choices, previous)
            all_jobs = {job.overrides: job for job in (*previous, *names)}
            with suppress(OSError, FeaturemapsError):  # Hydra fails at the same folder, too
                sweep_jobs.write_jobs(folder, list(all_jobs.values()))
            SweepStatus.jobs = own_folders or [job.job for job in names]
        SweepStatus.folder = folder
        _bring_statuses(get_class(config.hydra.launcher._target_))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Start the timer and replace the status of an earlier attempt."""
        SweepStatus.started = time.monotonic()
        if config.hydra.mode is RunMode.MULTIRUN:
            write_status(config, _RUNNING)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Write the status of a job, and log its traceback; outside a sweep, do nothing."""
        if config.hydra.mode is not RunMode.MULTIRUN:
            return
        if job_return.status is JobStatus.COMPLETED:
            result = {"state": "done", **_made(job_return.return_value)}
        else:
            error = job_return._return_value
            result = {"state": "failed", "error": one_line(error, limit=500)}
            logging.getLogger("pipeline.traceback").error("failed", exc_info=error)
        vars(job_return)[STATUS] = write_status(config, result)


def write_status(config: DictConfig, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write the status of this process's job to its folder and return it."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    status: dict[str, Any] = {
        "job": folder.name,
        "overrides": " ".join(sweep_jobs.unresolved(hydra.overrides.task)),
        "seconds": round(time.monotonic() - SweepStatus.started, 3),
        **result,
    }
    if measures := OmegaConf.select(config, "sweep.similarity"):
        status["similarity"] = list(measures)
    write_json(folder / STATUS, status)
    return status


def _bring_statuses(launcher: Any) -> None:
    """Let a launcher write the statuses of jobs, perhaps of other nodes, to the sweep's folder."""
    launch = launcher.launch
    if hasattr(launch, "brings_statuses"):
        return

    def launching(self: Any, *args: Any, **kwargs: Any) -> Any:
        results = launch(self, *args, **kwargs)
        first = kwargs.get("initial_job_idx", 0)
        names = SweepStatus.jobs[first : first + len(results)]
        for result, name in zip(results, names, strict=False):  # other sweepers: no names
            if (status := vars(result).get(STATUS)) and SweepStatus.folder:
                (SweepStatus.folder / name).mkdir(parents=True, exist_ok=True)
                write_json(SweepStatus.folder / name / STATUS, status | {"job": name})
        return results

    launching.brings_statuses = True  # type: ignore[attr-defined]
    launcher.launch = launching


def _made(made: dict[str, Any]) -> dict[str, Any]:
    archive = place(made["archive"]).absolute()
    status: dict[str, Any] = {"archive": str(archive)}
    if options := getattr(archive, "options", None):
        status["storage_options"] = dict(options)
    if "written" in made:
        status |= {"written": made["written"], "extracting": round(made["seconds"], 3)}
    if not (archive / COMPLETE).is_file():
        return {**status, "images": made.get("written", "")}
    complete = Complete.read(archive)
    return {**status, "images": complete.samples, "bytes": complete.bytes}


def summarize(folder: Path, *, interrupted: bool = False) -> str:
    """Write `catalogue.csv` and `index.html` of a sweep; return a table of its jobs as text.

    Its jobs are the subfolders with `.hydra` or a status. A job that reported no result was
    interrupted with the sweep, or its process died.
    """
    from pipeline.gallery.catalogue import write_catalogue

    rows = jobs(folder, interrupted=interrupted)
    rows += [
        {"job": name, "state": "not started", "images_per_second": ""}
        for name in SweepStatus.jobs
        if not (folder / name).is_dir()
    ]
    lines = [[row.get(column) for column in _COLUMNS] for row in rows]
    write_bytes(folder / CATALOGUE, as_csv([_COLUMNS, *lines]))
    archives = _complete_archives(folder, rows)
    measures = next((row["similarity"] for row in rows if row.get("similarity")), None)
    compared = _compare(folder, archives, measures) if measures else ""
    page = write_catalogue(folder, rows)
    done = sum(row["state"] == "done" for row in rows)
    where = f"sweep:    {folder}  ({done} of {len(rows)} jobs done)\n"
    inside = set(archives) <= set(archives_of(folder))
    archive_paths = shlex.join(map(str, [folder] if inside else archives))
    explore = f"explore:  featuremaps serve {archive_paths}\n" if archives else ""
    return f"{_table(rows)}{where}{compared}catalogue: {page}\n{explore}"


def _complete_archives(folder: Path, rows: Sequence[dict[str, Any]]) -> list[Place]:
    """Return the complete archives in the folder of a sweep, and those of its jobs elsewhere."""
    complete = [
        place(row["archive"], storage_options=row.get("storage_options"))
        for row in rows
        if row.get("bytes")
    ]
    every = dict.fromkeys([*archives_of(folder), *complete])
    return [archive for archive in every if not first_missing([archive / COMPLETE])]


def _compare(folder: Path, archives: Sequence[Place], measures: Sequence[str]) -> str:
    """Compare the layers of the complete archives; return a line with the page or the error."""
    from pipeline.similarity.similarity import similarity
    from pipeline.similarity.similarity_page import write_similarity

    if not archives:
        return "similarity: not computed; no archive is complete\n"
    try:
        page = write_similarity(similarity(archives, measures=measures), folder / SIMILARITY)
    except FeaturemapsError as error:
        return f"similarity: not computed: {error}\n"
    return f"similarity: {page}\n"


def jobs(folder: Path, *, interrupted: bool = False) -> list[dict[str, Any]]:
    """Return the status of each job of a sweep, in natural order of names."""
    folders = [
        job for job in folder.iterdir() if (job / ".hydra").is_dir() or (job / STATUS).is_file()
    ]
    names = sorted(folders, key=lambda job: natural_order(job.name))
    return [_row(job, interrupted=interrupted) for job in names]


def _row(job: Path, *, interrupted: bool) -> dict[str, Any]:
    status = read_json(job / STATUS) or dict(_RUNNING)
    if status["state"] == "running":
        status |= _INTERRUPTED if interrupted else _DIED
    seconds, images = status.get("extracting") or 0, status.get("written") or 0
    rate = round(images / seconds, 2) if seconds and images else ""
    return {**status, "job": job.name, "images_per_second": rate}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        nbytes = size(row["bytes"]) if row.get("bytes") else ""
        line = [row["job"], row["state"], row.get("images", ""), nbytes]
        line += [row["images_per_second"], row.get("seconds", "")]
        lines.append([*line, one_line(row.get("error") or "", limit=90)])
    return table(("job", "state", "images", "bytes", "images/s", "seconds", ""), lines)


def hint(overrides: Sequence[str]) -> str:
    """Return a hint for a sweep over layers, or an empty string."""
    parsed = map(parsed_override, overrides)
    swept = [str(item.key_or_group) for item in parsed if item and item.is_sweep_override()]
    over_layers = [key for key in swept if key.split(".")[0].lstrip("+") == "layers"]
    if not over_layers:
        return ""
    return (
        f"{', '.join(over_layers)}: each job repeats the forward passes of the same model; use one "
        "job with all layers instead (layers.include=[…])"
    )
