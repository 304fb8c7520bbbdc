"""The jobs of a sweep: their overrides, and the names of their folders in `jobs.json`.

Values `glob:PATTERN` expand to the matching paths.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.cli.job_names import JobNames
from pipeline.cli.quoting import GLOB, matches_of
from pipeline.common.atomic_files import write_json
from pipeline.common.errors import ConfigError, one_line

JOBS = "jobs.json"


def unresolved(overrides: Any) -> list[str]:
    """Return overrides as given: access to the items of a list resolves their interpolations."""
    words: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(word) for word in words]


def _expand_globs(override: Override) -> None:
    """Replace values `glob:PATTERN` by the matching paths, in natural order."""
    value = override._value
    items: list[Any] = value.list if isinstance(value, ChoiceSweep) else [value]
    values: list[Any] = []
    for item in items:
        text = item.text if isinstance(item, QuotedString) else item
        if not (isinstance(text, str) and text.startswith(GLOB)):
            values.append(item)
            continue
        paths = [QuotedString(text=path, quote=Quote.single) for path in matches_of(text)]
        if not paths:
            key = override.get_key_element()
            raise ConfigError(f"{key}={text}: no file or folder matches; check the pattern")
        values += [path for path in paths if path not in values]
    if values != items:
        override._value, override.value_type = ChoiceSweep(list=values), ValueType.CHOICE_SWEEP


def jobs_of(config: DictConfig, loader: ConfigLoader) -> list[list[str]]:
    """Return the different overrides of each job; `loader` knows the choices of groups."""
    sweeper = config.hydra.sweeper
    if sweeper.get("max_batch_size", 0) is not None:
        raise ConfigError("hydra.sweeper: only its params can be set; remove other settings")
    if "${hydra.job.num}" not in OmegaConf.to_yaml(config.hydra.sweep):  # Hydra's default
        raise ConfigError(
            "hydra.sweep.subdir: jobs are named by what varies; set hydra.sweep.dir for the folder "
            "of all jobs, and archive for that of each archive"
        )
    try:
        params = dict(sweeper.params or {})
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{error.full_key}: its ${{…}} has no value before the jobs start; set the key on the "
            "command line, or in the file outside hydra:"
        ) from None
    words = [f"{key}={value}" for key, value in params.items()]
    words += unresolved(config.hydra.overrides.task)
    overrides = OverridesParser.create(loader).parse_overrides(words)
    for override in overrides:
        _expand_globs(override)
    try:
        jobs: list[list[str]] = BasicSweeper.split_arguments(overrides, None)[0]
    except (HydraException, ValueError) as error:  # interval(), or a range with step 0
        raise ConfigError(
            f"sweep: {one_line(error)}; use values with commas, range(), choice() or glob()"
        ) from None
    if not jobs:
        raise ConfigError("sweep: a key has no values, so there are no jobs; give it some")
    duplicates = [job for job, count in Counter(map(tuple, jobs)).items() if count > 1]
    if duplicates:
        raise ConfigError(
            f"sweep: duplicate job `{' '.join(duplicates[0])}`; remove repeated values"
        )
    return jobs


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
