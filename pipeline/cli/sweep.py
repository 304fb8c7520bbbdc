"""Sweeps: their jobs, the status of each, summarized in a table and a page.

Hydra's launchers let the other jobs finish when one fails, but leave no traceback in the failed
job's log. A job writes `status.json` into its folder, also where the sweep was started, and the
traceback into its log; `summarize` gathers them into `catalogue.csv`, `index.html` and a table.

Folder names are chosen when the sweep starts, from the keys that vary, and given to the jobs.
"""

import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline.archive.format.completion import Complete
from pipeline.archive.format.schema import COMPLETE, archives_of
from pipeline.cli.job_names import JobNames, name_jobs
from pipeline.cli.quoting import parsed_override
from pipeline.cli.sweep_jobs import jobs_of, read_jobs, unresolved, write_jobs
from pipeline.common.atomic_files import as_csv, read_json, write_bytes, write_json
from pipeline.common.errors import FeaturemapsError, SweepError, one_line
from pipeline.common.natural_order import natural_order
from pipeline.common.places import Place, first_missing, place
from pipeline.common.progress import size, table
from pipeline.common.signals import terminated

STATUS = "status.json"
CATALOGUE = "catalogue.csv"
ARCHIVES = "archives"
SIMILARITY = "similarity"
_ARCHIVE = "FEATUREMAPS_ARCHIVE"
"""Entry of a job's `hydra.job.env_set`: the name of its archive."""
_RUNNING = {"state": "running", "seconds": ""}
_INTERRUPTED = {
    "state": "interrupted",
    "error": "the sweep was interrupted before this job reported a status",
}
_DIED = {"state": "died", "error": "the process exited without reporting a status"}
_COLUMNS = ("job", "state", "images", "bytes", "images_per_second", "seconds", "overrides",
            "archive", "error")  # fmt: skip

Task = Callable[[DictConfig], dict[str, Any]]


def _archive_folder() -> str:
    """Return the value of `${archive_folder:}`: in the run folder, or shared by jobs of a sweep."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        missing = OmegaConf.is_missing(hydra.runtime, "output_dir")  # with --cfg job --resolve
        return f"{hydra.run.dir if missing else hydra.runtime.output_dir}/archive"
    return str(Path(hydra.sweep.dir).absolute() / ARCHIVES / hydra.job.env_set[_ARCHIVE])


OmegaConf.register_new_resolver("archive_folder", _archive_folder, replace=True)


def is_sweep() -> bool:
    """Return whether the running job belongs to a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def run_sweep(hydra: Hydra, root: str, overrides: list[str], task: Task) -> int:
    """Run the jobs of a sweep with Hydra's launcher; return the number of skipped samples.

    Prints a summary, also after an interruption.

    Raises:
        FeaturemapsError: the first error of a job; SweepError for other errors, and dead processes.
    """
    config = hydra.compose_config(root, overrides, RunMode.MULTIRUN, with_log_configuration=True)
    jobs = jobs_of(config, hydra.config_loader)
    for overrides in jobs:  # composed before any of them starts
        hydra.config_loader.load_sweep_config(config, overrides)
    folder = Path(config.hydra.sweep.dir).absolute()
    previous = read_jobs(folder)
    names = name_jobs(jobs, config.hydra.runtime.choices, previous)
    write_jobs(folder, list(dict.fromkeys((*previous, *names))))
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
    launcher = Plugins.instance().instantiate_launcher(context, partial(run_job, task), config)
    failures: list[Exception] = []
    results: Sequence[JobReturn] = ()
    interrupted = False
    try:
        results = launcher.launch([_words(job) for job in names], initial_job_idx=0)
    except (KeyboardInterrupt, SystemExit) as error:
        interrupted = True
        if isinstance(error, SystemExit):  # Ray's own handler of SIGTERM
            terminated(signal.SIGTERM)
        raise
    except Exception as error:
        if isinstance(error.__cause__, OSError):  # no log can be written
            raise
        failures.append(error)
    finally:
        for result, job in zip(results, names, strict=False):
            failures += _bring_status(folder / job.job, result)
        sys.stdout.write(summarize(folder, names, interrupted=interrupted))
    for failure in failures:
        if isinstance(failure, FeaturemapsError):
            raise failure
        raise SweepError(
            f"a job failed or its process died ({type(failure).__name__}: "
            f"{one_line(failure, limit=200)}); see the logs in the job folders, then run the same "
            "command again to resume (finished jobs are kept)"
        ) from failure
    return sum(result.return_value.get("skipped", 0) for result in results)


def _words(job: JobNames) -> list[str]:
    """Return the overrides of a job with those for its folder and its archive."""
    archive = f"+hydra.job.env_set.{_ARCHIVE}='{job.archive}'"
    return [*job.overrides, f"hydra.sweep.subdir='{job.job}'", archive]


def _bring_status(folder: Path, result: JobReturn) -> list[Exception]:
    """Return the error of a job, if any; write its status, which may come from another node."""
    done, value = result.status is JobStatus.COMPLETED, result._return_value
    if status := value if done else vars(value).get(STATUS):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STATUS, status)
    return [] if done else [value]


def run_job(task: Task, config: DictConfig) -> dict[str, Any]:
    """Run one job of a sweep in its process; write its status to its folder, and return it."""
    hydra = HydraConfig.get()
    overrides, folder = unresolved(hydra.overrides.task), Path(hydra.runtime.output_dir)
    started = time.monotonic()
    sys.argv = [f"featuremaps {hydra.job.config_name}", *overrides]  # recorded in the archive
    status: dict[str, Any] = {"job": folder.name, "overrides": " ".join(overrides)}
    if measures := OmegaConf.select(config, "sweep.similarity"):
        status["similarity"] = list(measures)

    def report(result: Mapping[str, Any]) -> dict[str, Any]:
        seconds = round(time.monotonic() - started, 3)
        whole = {**status, "seconds": seconds, **result}
        write_json(folder / STATUS, whole)
        return whole

    report(_RUNNING)
    try:
        result = task(config)
    except KeyboardInterrupt as error:
        message = one_line(error, limit=500) or "interrupted"
        report({"state": "interrupted", "error": message})
        raise
    except Exception as error:
        vars(error)[STATUS] = report({"state": "failed", "error": one_line(error, limit=500)})
        logging.getLogger("pipeline.traceback").error("failed", exc_info=error)
        raise
    return report({"state": "done", **_made(result)})


def _made(made: dict[str, Any]) -> dict[str, Any]:
    archive = place(made["archive"]).absolute()
    status: dict[str, Any] = {"archive": str(archive)}
    if options := getattr(archive, "options", None):
        status["storage_options"] = dict(options)
    if "written" in made:
        status |= {"written": made["written"], "extracting": round(made["seconds"], 3)}
        status["skipped"] = made["skipped"]
    if not (archive / COMPLETE).is_file():
        return {**status, "images": made.get("written", "")}
    complete = Complete.read(archive)
    return {**status, "images": complete.samples, "bytes": complete.bytes}


def summarize(folder: Path, names: Sequence[JobNames], *, interrupted: bool = False) -> str:
    """Write `catalogue.csv` and `index.html` of a sweep; return a table of its jobs as text.

    Its jobs are the subfolders with `.hydra` or a status. A job that reported no result was
    interrupted with the sweep, or its process died.
    """
    from pipeline.gallery.catalogue import write_catalogue

    rows = jobs(folder, interrupted=interrupted)
    rows += [
        {"job": job.job, "state": "not started", "images_per_second": ""}
        for job in names
        if not (folder / job.job).is_dir()
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
