"""Entry point: parse the command line, print errors as one line, return an exit code."""

import argparse
import errno
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.cli import (
    archive_commands,
    export_command,
    override_commands,
    serve_command,
    similarity_commands,
)
from pipeline.cli.arguments import add_command, with_places
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
First steps:
  featuremaps run                                 a packaged model on packaged photos, offline
  featuremaps layers model=resnet18               which layers a model has
  featuremaps run model=resnet18 dataset=image_folder dataset.root=~/photos

run, extract, render, layers and plan take overrides: key=value, group=choice;
`featuremaps run --help` lists them.
Exit codes: 0 success, 1 failure, 2 wrong configuration or usage, 3 does not fit on the disk,
4 finished with skipped samples, 5 disk full, 130 or 143 interrupted (rerun the command to resume).
"""


def entry() -> None:
    """Run the command line and exit the process with its exit code."""
    # One thread for NumPy's linear algebra: drawing is parallel over samples, and a small
    # eigenvalue problem on several OpenBLAS threads sometimes stalls for seconds. Must be set
    # before NumPy is imported; torch has its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ["MPLBACKEND"] = "agg"  # whatever the shell or a notebook sets: no window is opened
    # Interrupted jobs of a sweep leave semaphores, which Python removes: no warnings of it.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    logging.raiseExceptions = False  # on a full disk, each line of the log was a traceback
    if "_ARGCOMPLETE" in os.environ:  # called by a shell for completions
        import argcomplete

        argcomplete.autocomplete(parser(), always_complete_options=False)
    terminate_cleanly()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = main(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):  # at exit, Python only prints their exceptions
        signal.signal(number, signal.SIG_DFL)
    if code in (1, DiskFullError.exit_code) or (code == 143 and "ray" in sys.modules):
        # HDF5 crashes at exit after a failed write, and Ray after SIGTERM.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; print errors as one line on stderr."""
    try:
        if not arguments:
            parser().print_help()
            return ConfigError.exit_code
        _refuse_other_encodings(arguments)
        command, *rest = arguments
        if command in override_commands.COMMANDS:  # Hydra reads these itself
            return override_commands.COMMANDS[command](rest)
        try:
            options = parser(arguments).parse_args(arguments)
        except SystemExit as error:  # argparse, after --help
            return int(error.code or 0)
        code: int = options.carry_out(with_places(options))
        return code
    except FeaturemapsError as error:
        return fail(str(error), error, error.exit_code)
    except SystemExit as error:  # raised by user code
        code = error.code if isinstance(error.code, int) and error.code else 1
        return fail(
            f"the code of the model or dataset called sys.exit({error.code!r}); remove the call",
            error,
            code,
        )
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted; run the same command again to resume"
        return fail(message, error, getattr(error, "exit_code", 130))
    except BrokenPipeError:
        return 1
    except OSError as error:  # e.g. a folder cannot be created: not a bug
        where = f"{error.filename}: " if error.filename else ""
        message = "; ".join([f"{where}{error.strerror or error}", *getattr(error, "__notes__", ())])
        full = error.errno == errno.ENOSPC
        return fail(message, error, DiskFullError.exit_code if full else 1)
    except ImportError as error:
        return fail(
            f"{error}; a package is missing or damaged (install it again), or `ulimit -v` is too "
            "small",
            error,
            1,
        )
    except MemoryError as error:
        return fail(f"not enough memory: {error}", error, 1)
    except Exception as error:  # noqa: BLE001 - last resort: one line; the traceback is logged
        return fail(
            f"unexpected {type(error).__name__}: {error} (this is a bug; please report it)",
            error,
            1,
        )


def _refuse_other_encodings(arguments: Sequence[str]) -> None:
    """Raise ConfigError for bytes that are not UTF-8, which no manifest can hold."""
    with suppress(FileNotFoundError):  # the folder was deleted
        arguments = [*arguments, str(Path.cwd())]
    for text in arguments:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{text!a}: not UTF-8; rename the file or folder, or set LC_ALL=C.UTF-8 if "
                "its name is UTF-8"
            ) from None


def fail(message: str, error: BaseException, exit_code: int) -> int:
    """Print the message on one line, log the traceback, and return the exit code."""
    trace = logging.getLogger("pipeline.traceback")
    if trace.handlers:
        trace.error("failed", exc_info=error)
    sys.stderr.write(f"featuremaps: error: {one_line(message, limit=2000)}\n")
    return exit_code


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises ConfigError."""

    def error(self, message: str) -> Any:
        """Raise ConfigError instead of exiting the process."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def parser(arguments: Sequence[str] = ("-h",)) -> Parser:
    """Return the parser of all commands; raise ConfigError for an unknown command."""
    top = Parser(
        prog="featuremaps",
        description="record and explore the feature maps of vision models",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"featuremaps {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for module in (override_commands, archive_commands, export_command, similarity_commands,
                   serve_command):  # fmt: skip
        module.declare(commands)
    shells = add_command(commands, "completion", completion_command, archives=False)
    shells.add_argument("shell", choices=("bash", "zsh", "fish"))
    if arguments[0] not in (*commands.choices, "-h", "--help", "--version"):
        raise ConfigError(
            f"unknown command {arguments[0]!r}; {_remedy(arguments, commands.choices)}"
        )
    return top


def _remedy(arguments: Sequence[str], commands: Iterable[str]) -> str:
    """Return the remedy for a command line that starts with an unknown command."""
    from pipeline.archive.format.schema import MANIFEST, archives_of

    first, command_line = arguments[0], shlex.join(arguments)
    if first == "help":
        return f"use: featuremaps {shlex.join([*arguments[1:2], '--help'])}"
    if any((folder / MANIFEST).is_file() for folder in archives_of(Path(first))):
        return f"for an archive, use: featuremaps info {command_line} (or serve)"
    is_model_or_folder = first in choices("model") or Path(first).is_dir()
    if is_model_or_folder or "=" in first or first.startswith("-"):
        return f"to extract and render, use: featuremaps run {command_line}"
    return suggestion(first, commands)


def completion_command(options: argparse.Namespace) -> int:
    """Print a shell completion script."""
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["featuremaps"], shell=options.shell))
    return 0
