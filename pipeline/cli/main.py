"""The command line: its commands, and errors as one line with an exit code."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.cli import (
    archive_commands,
    cite_command,
    health_command,
    override_commands,
    serve_command,
    similarity_command,
)
from pipeline.common.errors import (
    ConfigError,
    DiskFullError,
    FeaturemapsError,
    one_line,
    suggestion,
)
from pipeline.common.signals import terminate_cleanly
from pipeline.config.config_docs import choices

_EPILOG = """\
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
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        import argcomplete

        argcomplete.autocomplete(parser(), always_complete_options=False)
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
    try:
        if not arguments:
            parser().print_help()
            return ConfigError.exit_code
        command, *rest = arguments
        if command in override_commands.COMMANDS:  # Hydra reads these itself
            return override_commands.COMMANDS[command](rest)
        try:
            options = parser(arguments).parse_args(arguments)
        except SystemExit as error:  # argparse, after --help
            return int(error.code or 0)
        from pipeline.common.paths import refuse_url  # with pydantic: not for help

        values = [v if isinstance(v, list) else [v] for v in vars(options).values()]
        for path in (v for several in values for v in several if isinstance(v, Path)):
            refuse_url(path)
        code: int = options.carry_out(options)
        return code
    except FeaturemapsError as error:
        return fail(str(error), error, error.exit_code)
    except SystemExit as error:  # of code that is not ours: the work is not done
        code = error.code if isinstance(error.code, int) and error.code else 1
        return fail(f"code of the model or dataset called sys.exit({error.code!r})", error, code)
    except KeyboardInterrupt as error:
        return fail("interrupted; the same command goes on where it stopped", error, 130)
    except BrokenPipeError:
        return 1
    except OSError as error:  # where a folder cannot be made, say: no defect
        where = f"{error.filename}: " if error.filename else ""
        message = "; ".join([f"{where}{error.strerror or error}", *getattr(error, "__notes__", ())])
        full = error.errno == errno.ENOSPC
        return fail(message, error, DiskFullError.exit_code if full else 1)
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


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours."""

    def error(self, message: str) -> Any:
        """Raise instead of leaving the process."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def parser(asked: Sequence[str] = ("-h",)) -> Parser:
    """Return the parser of all commands."""
    top = Parser(
        prog="featuremaps",
        description="see and keep what happens inside a vision network",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"featuremaps {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, title="commands")
    override_commands.declare(commands)
    archive_commands.declare(commands)
    cite_command.declare(commands)
    similarity_command.declare(commands)
    health_command.declare(commands)
    serve_command.declare(commands)
    shells = commands.add_parser("completion", help="what a shell evaluates to complete all this")
    shells.add_argument("shell", choices=("bash", "zsh", "fish"))
    shells.set_defaults(carry_out=completion_command)
    if asked[0] not in (*commands.choices, "-h", "--help", "--version"):
        raise ConfigError(f"no command {asked[0]!r}; {_command_for(asked, commands.choices)}")
    return top


def _command_for(asked: Sequence[str], commands: Iterable[str]) -> str:
    """Return what to type where the first word of a command line is no command."""
    from pipeline.archive.format.schema import MANIFEST, archives_of

    first, whole = asked[0], shlex.join(asked)
    if any((folder / MANIFEST).is_file() for folder in archives_of(Path(first))):
        return f"of an archive: featuremaps info {whole} (or serve)"
    named = first in choices("model") or Path(first).is_dir()
    if named or "=" in first or first.startswith("-"):
        return f"to extract and draw: featuremaps run {whole}"
    return suggestion(first, commands)


def completion_command(options: argparse.Namespace) -> int:
    """Print the script for a shell's completion."""
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["featuremaps"], shell=options.shell))
    return 0
