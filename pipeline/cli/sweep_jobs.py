"""The jobs of a sweep: their overrides, and the names of their folders in `jobs.json`.

Values `glob:PATTERN` expand to the matching paths.
"""

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
from omegaconf.errors import OmegaConfBaseException

from pipeline.cli.job_names import JobNames, name_jobs
from pipeline.cli.quoting import GLOB, matches_of, parsed_override, quoted_text
from pipeline.common.atomic_files import write_json

JOBS = "jobs.json"


class RefusedSweepError(BaseException):
    """A sweep that must not start; a BaseException, since Hydra only logs Exceptions."""


def unresolved(overrides: Any) -> list[str]:
    """Return overrides as given: access to the items of a list resolves their interpolations."""
    words: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(word) for word in words]


def expand_globs(config: DictConfig) -> None:
    """Replace values `glob:PATTERN` by the matching paths, in natural order."""
    hydra = config.hydra
    try:
        params = dict(hydra.sweeper.get("params") or {})
    except OmegaConfBaseException as error:
        raise RefusedSweepError(
            f"{error.full_key}: its ${{…}} has no value before the jobs start; set the key on the "
            "command line, or in the file outside hydra:"
        ) from None
    words = unresolved(hydra.overrides.task)
    if not any("glob:" in str(word) for word in (*params.values(), *words)):
        return
    with read_write(hydra), open_dict(hydra):
        for key, value in params.items():
            if "glob:" in str(value):
                hydra.sweeper.params[key] = _expanded(f"{key}={value}").partition("=")[2]
        hydra.overrides.task = [_expanded(word) for word in words]


def _expanded(word: str) -> str:
    override = parsed_override(word)
    value = override and override._value
    values: list[Any] = value.list if isinstance(value, ChoiceSweep) else [value]
    if override is None or not any(_text_of(item).startswith(GLOB) for item in values):
        return word
    words = []
    for item in values:
        if not _text_of(item).startswith(GLOB):
            words.append(Override._get_value_element_as_str(item))
            continue
        paths = matches_of(_text_of(item))
        if not paths:
            raise RefusedSweepError(
                f"{override.get_key_element()}={_text_of(item)}: no file or folder matches; check "
                "the pattern"
            )
        words += [quoted_text(path) for path in paths]
    return f"{override.get_key_element()}={','.join(dict.fromkeys(words))}"


def _text_of(value: Any) -> str:
    return value.text if isinstance(value, QuotedString) else value if type(value) is str else ""


def jobs_of(config: DictConfig) -> list[list[str]]:
    """Return the different overrides of each job; no jobs with a sweeper other than Hydra's."""
    if not str(config.hydra.sweeper.get("_target_", "")).endswith(".BasicSweeper"):
        return []
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    try:
        overrides = OverridesParser.create().parse_overrides(
            [*params, *unresolved(config.hydra.overrides.task)]
        )
        jobs: list[list[str]] = BasicSweeper.split_arguments(overrides, None)[0]
    except HydraException:
        return []  # the sweeper reports the error
    if not jobs:
        raise RefusedSweepError("sweep: a key has no values, so there are no jobs; give it some")
    duplicates = [job for job, count in Counter(map(tuple, jobs)).items() if count > 1]
    if duplicates:
        raise RefusedSweepError(
            f"sweep: duplicate job `{' '.join(duplicates[0])}`; remove repeated values"
        )
    return jobs


def own_folders(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the different job folders if the user sets `hydra.sweep.subdir`, or an empty list."""
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
                "remove one, or set hydra.sweep.subdir to a value that differs between jobs"
            )
        folders[folder] = words
    return list(folders)


def names_of(sweep: str | Path, overrides: Any, choices: Mapping[str, str | None]) -> JobNames:
    """Return the names chosen when the sweep started; with other sweepers, of all overrides."""
    known = read_jobs(Path(sweep))
    job = tuple(unresolved(overrides))
    return next(
        (names for names in known if names.overrides == job),
        name_jobs([job, ()], choices, known)[0],
    )


def read_jobs(sweep: Path) -> list[JobNames]:
    """Return the names of all jobs in a sweep folder, including those of earlier sweeps."""
    try:
        jobs = json.loads((sweep / JOBS).read_text(encoding="utf-8"))
        return [JobNames(tuple(job["overrides"]), job["job"], job["archive"]) for job in jobs]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_jobs(sweep: Path, names: Sequence[JobNames]) -> None:
    """Write the names of the jobs of a sweep; create its folder."""
    sweep.mkdir(parents=True, exist_ok=True)
    write_json(sweep / JOBS, [asdict(job) for job in names])
