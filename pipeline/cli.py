"""The command line.

`run`, `extract`, `render` and `layers` take Hydra overrides, the others plain arguments.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__, archive_commands
from pipeline.errors import (
    SKIPPED_EXIT_CODE,
    ConfigError,
    DiskFullError,
    DoesNotFitError,
    FeaturemapsError,
    SweepError,
)
from pipeline.names import one_line, suggestion
from pipeline.signals import terminate_cleanly

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pipeline.extract import Extraction

USAGE = """\
featuremaps: see and keep what happens inside a vision network

  featuremaps run                    extract, render and gallery: the main job. Without
                                     arguments: a packaged model over packaged photos, offline
  featuremaps extract                dataset → archive
  featuremaps render archive=PATH    archive → pictures and gallery (needs no model)
  featuremaps layers                 the model's layers in execution order; marks the selected ones
                                     (--all: also the others, --json)
  featuremaps plan                   what a run would write and need; exit 3 if it does
                                     not fit (--json)
  featuremaps info PATH              what is in an archive, also a partial one (--json)
  featuremaps verify PATH            reads everything: sha256, rows, checksums, statistics (--json)
  featuremaps stitch archive=PATH    completes an archive whose shards other jobs wrote
  featuremaps pack PATH OUT.h5       one self-contained HDF5 file
  featuremaps compare A B            same samples, same values? (--rtol, --atol, --json)
  featuremaps reproduce PATH OUT     extracts again what an archive records, and compares the two
                                     (--rtol, --atol, --dry-run)

run, extract, render, layers and plan take overrides: key=value, group=choice;
`featuremaps run --help` lists them.
Exit codes: 0 clean, 1 failed, 2 bad configuration or usage, 3 does not fit, 4 finished but
samples were skipped, 5 disk full, 130 or 143 interrupted (the same command goes on).
"""


def entry() -> None:
    """Run the console script and leave the process with its exit code."""
    # One thread for NumPy's linear algebra: drawing is parallel over samples, and a small
    # eigenvalue problem on several OpenBLAS threads sometimes stalls for seconds. Must be set
    # before NumPy is imported; torch has its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    terminate_cleanly()
    code = main(sys.argv[1:])
    if code == DiskFullError.exit_code:
        # HDF5 crashes at exit while the disk stays full: leave before it tries to write again.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit code; errors are one line on stderr."""
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": lambda rest: hydra_command("run", rest),
        "extract": lambda rest: hydra_command("extract", rest),
        "render": lambda rest: hydra_command("render", rest),
        "layers": layers_command,
        "plan": plan_command,
        **archive_commands.COMMANDS,
    }
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"featuremaps {__version__}\n")
        return 0
    try:
        if arguments[0] not in commands:
            raise ConfigError(f"no command {arguments[0]!r}; {suggestion(arguments[0], commands)}")
        return commands[arguments[0]](list(arguments[1:]))
    except FeaturemapsError as error:
        return fail(str(error), error, error.exit_code)
    except KeyboardInterrupt as error:
        return fail("interrupted; the same command goes on where it stopped", error, 130)
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line, the traceback in the log
        return fail(
            f"unexpected {type(error).__name__}: {error} (a defect; please report it)", error, 1
        )


def fail(message: str, error: BaseException, exit_code: int) -> int:
    """Print one line, put the traceback into the run's log, and return the exit code."""
    trace = logging.getLogger("pipeline.traceback")
    if trace.handlers:
        trace.error("failed", exc_info=error)
    elif os.environ.get("FEATUREMAPS_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    sys.stderr.write(f"featuremaps: error: {one_line(message, limit=2000)}\n")
    return exit_code


def hydra_command(name: str, rest: list[str]) -> int:
    """Compose the configuration `name` with overrides and carry it out.

    Once or (with -m) per job.
    """
    if "--help" in rest or "-h" in rest:
        sys.stdout.write(help_text(name))
        return 0
    import hydra

    from pipeline import config, jobs
    from pipeline.conf import conf_folder
    from pipeline.config_errors import COMPOSITION_ERRORS, explain
    from pipeline.sweep import SweepStatus, hint, summarize
    from pipeline.torchrun import for_this_rank

    if {"-m", "--multirun"} & set(rest):
        folding = config.swept_keys(rest)
        if advice := hint(folding):
            sys.stderr.write(f"featuremaps: hint: {advice}\n")
    rest = for_this_rank(name, rest, os.environ)
    config.register(name)
    skipped: list[int] = []
    failures: list[Exception] = []
    task = jobs.TASKS[name]

    def job(composed: DictConfig) -> dict[str, Any] | None:
        try:
            made = task(config.to_plain(composed))
            skipped.append(made.skipped if made else 0)
            return vars(made) if made else None  # for `SweepStatus`; plain, for any launcher
        except Exception as error:
            if config.is_sweep():
                raise  # the launcher counts the job as failed and goes on with the others
            failures.append(error)  # past Hydra, which would print a line of its own
            return None

    # Otherwise Hydra prints errors itself and leaves with 1; this hands them to `main`.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"featuremaps {name}", *rest]
    start = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)
    try:
        start(job)()
    except COMPOSITION_ERRORS as error:
        raise explain(error) from error
    except FeaturemapsError:
        raise
    except Exception as error:
        if SweepStatus.folder is None:
            raise
        raise SweepError(
            f"a job failed, or its process died ({type(error).__name__}: "
            f"{one_line(error, limit=200)}); finished jobs are kept, each job has a log, and the "
            "same command goes on"
        ) from error
    finally:
        if SweepStatus.folder and SweepStatus.folder.is_dir():
            sys.stdout.write(summarize(SweepStatus.folder))
            SweepStatus.folder = None
    if failures:
        raise failures[0]
    return SKIPPED_EXIT_CODE if any(skipped) else 0


def layers_command(rest: list[str]) -> int:
    """List the model's layers."""
    extraction, flags = composed_extraction("layers", rest, ("--all", "--json"))
    if extraction is None:
        return 0
    from pipeline.listing import list_layers

    text = list_layers(extraction, everything="--all" in flags, as_json="--json" in flags)
    sys.stdout.write(text)
    return 0


def plan_command(rest: list[str]) -> int:
    """Tell what an extraction would write and whether it fits."""
    extraction, flags = composed_extraction("plan", rest, ("--json",))
    if extraction is None:
        return 0
    from pipeline import capacity
    from pipeline.planning import plan

    archive = Path(extraction.archive).expanduser() if extraction.archive else None
    found = capacity.facts(plan(extraction), archive)
    sys.stdout.write(capacity.describe(found, as_json="--json" in flags))
    return 0 if found["fits"] else DoesNotFitError.exit_code


def composed_extraction(
    name: str, rest: list[str], known: Sequence[str]
) -> tuple[Extraction | None, set[str]]:
    """Return the extraction that overrides describe, without a run folder, and the flags given.

    None after `--help`, which is printed.
    """
    from hydra import compose, initialize_config_dir

    from pipeline import config
    from pipeline.conf import conf_folder
    from pipeline.config_errors import COMPOSITION_ERRORS, explain

    flags = {flag for flag in known if flag in rest}
    overrides = [word for word in rest if word not in flags]
    if "--help" in overrides or "-h" in overrides:
        sys.stdout.write(help_text(name))
        return None, flags
    config.register("extract")
    if not any(word.startswith("archive=") for word in overrides):
        overrides.append("archive=null")  # its default is a run folder
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3", job_name=name):
            composed = compose("extract", overrides)
    except COMPOSITION_ERRORS as error:
        raise explain(error) from error
    return config.build_extraction(config.to_plain(composed)), flags


def help_text(name: str) -> str:
    """Return the help of a command that takes overrides.

    Its groups with their choices, and the main keys.
    """
    from pipeline.help import describe_overrides

    return describe_overrides(name)
