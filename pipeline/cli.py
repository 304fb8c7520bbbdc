"""The command line.

`run`, `extract`, `render` and `layers` take Hydra overrides, the others plain arguments.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.errors import SKIPPED_EXIT_CODE, ConfigError, FeaturemapsError
from pipeline.names import one_line, suggestion

if TYPE_CHECKING:
    from omegaconf import DictConfig

USAGE = """\
featuremaps: see and keep what happens inside a vision network

  featuremaps run                    extract, render and gallery: the main job. Without
                                     arguments: a packaged model over packaged photos, offline
  featuremaps extract                dataset → archive
  featuremaps render archive=PATH    archive → pictures and gallery (needs no model)
  featuremaps layers                 the model's layers in execution order; marks the selected ones
                                     (--all: also the others, --json)
  featuremaps info PATH              what is in an archive, also a partial one (--json)

run, extract, render and layers take overrides: key=value, group=choice;
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
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit code; errors are one line on stderr."""
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": lambda rest: hydra_command("run", rest),
        "extract": lambda rest: hydra_command("extract", rest),
        "render": lambda rest: hydra_command("render", rest),
        "layers": layers_command,
        "info": info_command,
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

    from pipeline import config

    config.register(name)
    codes: list[int] = []
    failures: list[Exception] = []
    task = {"run": run_job, "extract": extract_job, "render": render_job}[name]

    def job(composed: DictConfig) -> None:
        try:
            codes.append(task(config.to_plain(composed)))
        except Exception as error:
            if config.is_sweep():
                raise  # the launcher counts the job as failed and goes on with the others
            failures.append(error)  # past Hydra, which would print a line of its own

    # Otherwise Hydra prints errors itself and leaves with 1; this hands them to `main`.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"featuremaps {name}", *rest]
    start = hydra.main(version_base="1.3", config_path=str(config.conf_folder()), config_name=name)
    try:
        start(job)()
    except config.COMPOSITION_ERRORS as error:
        raise config.explain(error) from error
    if failures:
        raise failures[0]
    return max(codes, default=0)


def run_job(plain: dict[str, Any]) -> int:
    """Extract, render and write the gallery."""
    from pipeline import config

    renderers, options = config.build_rendering(plain)  # before the long work: a typo costs nothing
    extraction = config.build_extraction(plain)
    from pipeline.extract import extract

    made = extract(extraction)
    say(f"archive:  {made.archive}" + ("" if made.complete else "  (other parts are missing)"))
    if made.complete:
        draw(made.archive, renderers, options)
    return SKIPPED_EXIT_CODE if made.skipped else 0


def extract_job(plain: dict[str, Any]) -> int:
    """Extract only."""
    from pipeline import config

    extraction = config.build_extraction(plain)
    from pipeline.extract import extract

    made = extract(extraction)
    say(f"archive:  {made.archive}" + ("" if made.complete else "  (other parts are missing)"))
    return SKIPPED_EXIT_CODE if made.skipped else 0


def render_job(plain: dict[str, Any]) -> int:
    """Render an archive and write its gallery."""
    from pipeline import config

    for key in plain:
        if key not in ("archive", "render", "renderers"):
            raise ConfigError(
                f"{key}: no such key; {suggestion(key, ['archive', 'render', 'renderers'])}"
            )
    if plain.get("archive") in (None, "???"):
        raise ConfigError("archive: is required; e.g. featuremaps render archive=outputs/…/archive")
    renderers, options = config.build_rendering(plain)
    draw(Path(str(plain["archive"])).expanduser(), renderers, options)
    return 0


def draw(archive_path: Path, renderers: dict[str, Any], options: Any) -> None:
    """Draw pictures and gallery of an archive into the run's folder, and say where they are."""
    from pipeline.archive.reader import Archive
    from pipeline.config import run_folder
    from pipeline.gallery.pages import THUMBNAILS, write_gallery
    from pipeline.render import render
    from pipeline.renderers.thumbnails import Thumbnails

    folder = run_folder()
    with Archive.open(archive_path) as archive:
        rendered = render(archive, folder, {**renderers, THUMBNAILS: Thumbnails()}, options)
        page = write_gallery(archive, rendered)
    say(f"pictures: {folder / 'pictures'}  ({', '.join(renderers)})")
    say(f"gallery:  {page}")


def layers_command(rest: list[str]) -> int:
    """List the model's layers."""
    from hydra import compose, initialize_config_dir

    from pipeline import config

    flags = {flag for flag in ("--all", "--json") if flag in rest}
    overrides = [word for word in rest if word not in flags]
    if "--help" in overrides or "-h" in overrides:
        sys.stdout.write(help_text("layers"))
        return 0
    config.register("extract")
    try:
        with initialize_config_dir(
            str(config.conf_folder()), version_base="1.3", job_name="layers"
        ):
            composed = compose("extract", [*overrides, "archive=null"])
    except config.COMPOSITION_ERRORS as error:
        raise config.explain(error) from error
    extraction = config.build_extraction(config.to_plain(composed))
    from pipeline.listing import list_layers

    sys.stdout.write(
        list_layers(extraction, everything="--all" in flags, as_json="--json" in flags)
    )
    return 0


def info_command(rest: list[str]) -> int:
    """Describe an archive."""
    parser = Parser("info", "what is in an archive, also a partial one")
    parser.add_argument("path", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(rest)
    from pipeline.archive.info import describe_archive

    sys.stdout.write(describe_archive(options.path, as_json=options.json))
    return 0


class Parser(argparse.ArgumentParser):
    """argparse with this program's name and one-line errors."""

    def __init__(self, command: str, description: str) -> None:
        """Parse the arguments of `featuremaps <command>`."""
        super().__init__(prog=f"featuremaps {command}", description=description)

    def error(self, message: str) -> Any:
        """Raise instead of leaving the process.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def help_text(name: str) -> str:
    """Return the help of a command that takes overrides.

    Its groups with their choices, and the main keys.
    """
    from pipeline.help import describe_overrides

    return describe_overrides(name)


def say(line: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
