"""Commands that take Hydra overrides: run, extract, render, layers, plan."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.cli.overrides import (
    as_meant,
    flags_first,
    folders_searched,
    given_folders,
    is_sweep,
)
from pipeline.common.errors import (
    SKIPPED_EXIT_CODE,
    ConfigError,
    DoesNotFitError,
    FeaturemapsError,
    SweepError,
    one_line,
    suggestion,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig


def hydra_command(name: str, rest: list[str]) -> int:
    """Compose the configuration `name` with overrides and run it; with `-m`, run a sweep."""
    if asks_for_help(name, rest):
        return 0
    import hydra
    from hydra._internal.hydra import Hydra
    from hydra.core.hydra_config import HydraConfig

    from pipeline.cli import jobs, sweep
    from pipeline.cli.sweep_jobs import RefusedSweepError, unresolved
    from pipeline.cli.torchrun import for_this_rank
    from pipeline.config import hydra_schema
    from pipeline.config.config_docs import conf_folder
    from pipeline.config.error_messages import COMPOSITION_ERRORS, explain

    sweeps = bool({"-m", "--multirun"} & set(rest))
    rest = as_hydra_reads(name, for_this_rank(name, rest, os.environ), name)
    if sweeps and (advice := sweep.hint(rest)):
        sys.stderr.write(f"featuremaps: hint: {advice}\n")
    hydra_schema.register(name)
    skipped: list[int] = []  # skipped samples of each finished job
    failures: list[Exception] = []
    task = jobs.TASKS[name]

    def job(composed: DictConfig) -> dict[str, Any] | None:
        try:
            if sweep.is_sweep():  # recorded in the archive
                given = unresolved(HydraConfig.get().overrides.task)
                sys.argv = [f"featuremaps {name}", *given]
            with jobs.without_exit():
                made = task(hydra_schema.to_plain(composed))
            skipped.append(made.get("skipped", 0))
            return made  # for `SweepStatus`; plain, for any launcher
        except Exception as error:
            if sweep.is_sweep():
                raise  # the launcher marks the job as failed and continues
            failures.append(error)  # kept from Hydra, which would print it too
            return None

    # Let Hydra raise errors, which `main` prints, instead of exiting with code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"featuremaps {name}", *flags_first(rest)]
    start = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)
    get_mode = Hydra.get_mode  # composes the configuration, only to read hydra.mode
    if not is_sweep(rest) and not given_folders(rest):  # nothing sets it
        Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        start(job)()
    except RefusedSweepError as error:
        raise ConfigError(str(error)) from None
    except COMPOSITION_ERRORS as error:
        raise explain(error) from error
    except FeaturemapsError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("Only one of --"):
            raise ConfigError(f"{name}: {one_line(error)}") from error  # Hydra's flags: -m --cfg
        folder = sweep.SweepStatus.folder
        unmade = folder is not None and not folder.is_dir()
        if isinstance(error, OSError) and (folder is None or unmade):  # not an error of a job
            key = "sweep" if sweeps else "run"
            error.add_note(f"set hydra.{key}.dir=FOLDER to write elsewhere")
            raise
        if folder is None:
            raise
        raise SweepError(
            f"a job failed or its process died ({type(error).__name__}: "
            f"{one_line(error, limit=200)}); see the logs in the job folders, then run the same "
            "command again to resume (finished jobs are kept)"
        ) from error
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]
        swept = sweep.SweepStatus.folder is not None
        if sweep.SweepStatus.folder and sweep.SweepStatus.folder.is_dir():
            sys.stdout.write(sweep.summarize(sweep.SweepStatus.folder))
            sweep.SweepStatus.folder = None
    if failures:
        raise failures[0]
    if not (skipped or swept or _asks_hydra(rest)):
        raise FeaturemapsError(f"{name}: Hydra exited without running the job; see its output")
    return SKIPPED_EXIT_CODE if any(skipped) else 0


def looking_command(name: str, rest: list[str]) -> int:
    """Run `layers` or `plan`: print layers, or the size of an extraction; extract nothing."""
    if _asks_hydra(rest):
        return hydra_command("run", rest)
    if asks_for_help(name, rest):
        return 0
    from hydra import compose, initialize_config_dir

    from pipeline.cli.jobs import without_exit
    from pipeline.config import hydra_schema
    from pipeline.config.build import build_extraction
    from pipeline.config.config_docs import conf_folder
    from pipeline.config.error_messages import COMPOSITION_ERRORS, explain

    known = ("--all", "--functions", "--json") if name == "layers" else ("--json",)
    flags = {flag for flag in known if flag in rest}
    overrides = folders_searched(
        as_hydra_reads(name, [word for word in rest if word not in flags], "run")
    )
    for word in overrides:
        if word.startswith("-"):
            raise ConfigError(f"{name}: unknown option {word}; {suggestion(word, known)}")
    hydra_schema.register("run")
    if not any(word.startswith("archive=") for word in overrides):
        overrides.append("archive=null")  # the default is in a run folder
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=name):
            composed = compose("run", overrides)
    except COMPOSITION_ERRORS as error:
        raise explain(error) from error
    extraction = build_extraction(hydra_schema.to_plain(composed))
    from pipeline.extraction import disk_check, listing
    from pipeline.extraction.plan import make_plan

    as_json, fits = "--json" in flags, True
    with without_exit(), redirect_stdout(sys.stderr):  # the model's code may print
        if name == "layers":
            text = listing.list_layers(
                extraction,
                everything=bool(flags & {"--all", "--functions"}),
                functions="--functions" in flags,
                as_json=as_json,
            )
        else:
            facts = disk_check.facts(extraction, make_plan(extraction))
            text, fits = disk_check.describe(facts, as_json=as_json), facts["fits"]
    sys.stdout.write(text)
    return 0 if fits else DoesNotFitError.exit_code


def as_hydra_reads(name: str, words: Sequence[str], root: str) -> list[str]:
    """Return a command line for Hydra; print it if short forms were expanded."""
    from pipeline.cli.shortcuts import spelled_out
    from pipeline.config.yaml_size import refuse_explosions

    whole = spelled_out(words, root, name)
    if whole != [*words]:
        sys.stderr.write(
            f"featuremaps: interpreted as: {shlex.join(['featuremaps', name, *whole])}\n"
        )
    whole = as_meant(whole, root)
    refuse_explosions(given_folders(whole))
    return whole


_QUESTIONS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "--shell-completion",
              "-sc")  # fmt: skip


def _asks_hydra(words: Sequence[str]) -> bool:
    """Return whether Hydra only prints information for a command line."""
    return any(word.partition("=")[0] in _QUESTIONS for word in words)


def asks_for_help(name: str, words: Sequence[str]) -> bool:
    """Print the help if a command line requests it; return whether it does."""
    if not {"--help", "-h"} & set(words):
        return False
    from pipeline.cli.help import describe_overrides

    sys.stdout.write(describe_overrides(name))
    return True


def declare(commands: Any) -> None:
    """Add the subparsers, for help and completion only."""
    for name, text in _TEXTS.items():
        parser = commands.add_parser(name, help=text, add_help=False)
        parser.set_defaults(root=name if name in ("extract", "render") else "run")
        parser.add_argument("overrides", nargs="*").completer = _complete


def _complete(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the completions of the last word, for argcomplete."""
    from pipeline.cli.completion import words

    given = [word for word in parsed_args.overrides or () if not word.startswith("-")]
    return words(parsed_args.root, given, prefix)


_TEXTS = {
    "run": "extract, render and write the gallery; by default, of a packaged model and packaged "
    "photos, offline",
    "extract": "extract a dataset to an archive",
    "render": "render the archive archive=PATH to pictures and a gallery (needs no model)",
    "layers": "list the selected layers in execution order (--all, --functions: every one; --json)",
    "plan": "estimate disk and memory needs of a run; exit 3 if it does not fit (--json)",
}
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    name: partial(looking_command if name in ("layers", "plan") else hydra_command, name)
    for name in _TEXTS
}
