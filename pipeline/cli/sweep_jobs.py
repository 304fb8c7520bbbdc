"""The jobs of a sweep: their overrides and, in `jobs.json`, the names of their folders.

Values `glob:PATTERN` become the paths that match.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from pipeline.cli.job_names import JobNames, name_jobs
from pipeline.cli.quoting import GLOB, matches_of, quoted_text
from pipeline.common.atomic_files import write_json

JOBS = "jobs.json"


class RefusedSweepError(BaseException):
    """A sweep that must not start; no Exception, since Hydra only warns of those in callbacks."""


def expand_globs(config: DictConfig) -> None:
    """Replace values `glob:PATTERN` of a sweep by the paths that match, in natural order."""
    hydra = config.hydra
    params = dict(hydra.sweeper.get("params") or {})
    if not any("glob:" in str(word) for word in (*params.values(), *hydra.overrides.task)):
        return
    with read_write(hydra), open_dict(hydra):
        for key, value in params.items():
            hydra.sweeper.params[key] = _expanded(f"{key}={value}").partition("=")[2]
        hydra.overrides.task = [_expanded(word) for word in hydra.overrides.task]


def _expanded(word: str) -> str:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return word  # Hydra says what is wrong
    value = override._value
    values: list[Any] = value.list if isinstance(value, ChoiceSweep) else [value]
    if not any(_text_of(each).startswith(GLOB) for each in values):
        return word
    words = []
    for each in values:
        if not _text_of(each).startswith(GLOB):
            words.append(Override._get_value_element_as_str(each))
            continue
        paths = matches_of(_text_of(each))
        if not paths:
            raise RefusedSweepError(
                f"{override.get_key_element()}={_text_of(each)}: no file or folder matches"
            )
        words += [quoted_text(path) for path in paths]
    return f"{override.get_key_element()}={','.join(dict.fromkeys(words))}"


def _text_of(value: Any) -> str:
    return value.text if isinstance(value, QuotedString) else value if type(value) is str else ""


def jobs_of(config: DictConfig) -> list[list[str]]:
    """Return the overrides of every job of a sweep; none where a sweeper other than Hydra's own
    chooses them.

    Raises:
        RefusedSweepError: when two jobs have the same overrides.
    """
    if not str(config.hydra.sweeper.get("_target_", "")).endswith(".BasicSweeper"):
        return []
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    try:
        given = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
        jobs: list[list[str]] = BasicSweeper.split_arguments(given, None)[0]
    except HydraException:
        return []  # the sweeper says what is wrong
    twice = [job for job, count in Counter(map(tuple, jobs)).items() if count > 1]
    if twice:
        raise RefusedSweepError(f"sweep: the job `{' '.join(twice[0])}` is there twice")
    return jobs


def own_folders(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the folders of jobs where the user chose them by `hydra.sweep.subdir`; else none.

    Raises:
        RefusedSweepError: naming two jobs and their folder.
    """
    if "${job_folder:" in OmegaConf.to_yaml(config.hydra.sweep):
        return []
    folders: dict[str, str] = {}
    for number, overrides in enumerate(jobs):
        job = GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))
        with read_write(job.hydra), open_dict(job.hydra):
            job.hydra.job.num, job.hydra.job.id = number, str(number)
        folder, words = str(job.hydra.sweep.subdir), " ".join(overrides)
        if folder in folders:
            raise RefusedSweepError(
                f"sweep: the jobs `{folders[folder]}` and `{words}` would both write to {folder}; "
                "leave one out, or set hydra.sweep.subdir to what tells them apart"
            )
        folders[folder] = words
    return list(folders)


def names_of(
    sweep: str | Path, overrides: Sequence[str], choices: Mapping[str, str | None]
) -> JobNames:
    """Return the names of a job, as the start of its sweep chose them.

    A sweeper other than Hydra's own chooses its jobs as it goes: the names of these are made of
    all their overrides.
    """
    known = read_jobs(Path(sweep))
    job = tuple(overrides)
    return next(
        (names for names in known if names.overrides == job),
        name_jobs([job, ()], choices, known)[0],
    )


def read_jobs(sweep: Path) -> list[JobNames]:
    """Return the names of a sweep's jobs, those of earlier sweeps in its folder included."""
    try:
        jobs = json.loads((sweep / JOBS).read_text(encoding="utf-8"))
        return [JobNames(tuple(job["overrides"]), job["job"], job["archive"]) for job in jobs]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_jobs(sweep: Path, names: Sequence[JobNames]) -> None:
    """Write the names of a sweep's jobs; the folder is made."""
    sweep.mkdir(parents=True, exist_ok=True)
    write_json(sweep / JOBS, [asdict(job) for job in names])
