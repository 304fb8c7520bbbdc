"""The command line: commands, help, errors as one line with an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from pipeline import __version__, archive_commands, override_commands
from pipeline.errors import (
    ConfigError,
    DiskFullError,
    FeaturemapsError,
)
from pipeline.names import one_line, suggestion
from pipeline.signals import terminate_cleanly

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
                                     (--rtol, --atol, --dry-run, --allow-code, --allow-network,
                                     --allow-path FOLDER)
  featuremaps completion SHELL       what bash, zsh or fish evaluates to complete all of this

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
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"featuremaps {__version__}\n")
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise ConfigError(f"no command {arguments[0]!r}; {suggestion(arguments[0], COMMANDS)}")
        return COMMANDS[arguments[0]](list(arguments[1:]))
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


def completion_command(rest: list[str]) -> int:
    """Print the script for a shell's completion, or (`words LINE`) what completes a line."""
    from pipeline import completion

    if len(rest) == 2 and rest[0] == "words":
        found = completion.complete(rest[1], COMMANDS)
        sys.stdout.write("".join(f"{word}\n" for word in found))
        return 0
    if len(rest) != 1:
        raise ConfigError('completion: takes a shell; e.g. eval "$(featuremaps completion bash)"')
    sys.stdout.write(completion.script(rest[0]))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    **override_commands.COMMANDS,
    **archive_commands.COMMANDS,
    "completion": completion_command,
}
"""Command → what carries it out, given the words after it, and returns the exit code."""
