"""Commands that take Hydra overrides: run, extract, render, layers, plan."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.cli.overrides import as_meant, composing, given_folders, is_sweep
from pipeline.common.errors import SKIPPED_EXIT_CODE, ConfigError, DoesNotFitError, suggestion

if TYPE_CHECKING:
    from omegaconf import DictConfig


def hydra_command(name: str, rest: list[str]) -> int:
    """Compose the configuration `name` with overrides and run it; with `-m`, run a sweep."""
    if asks_for_help(name, rest):
        return 0
    from hydra.types import RunMode

    from pipeline.cli import sweep
    from pipeline.cli.torchrun import for_this_rank

    line = command_line(name, for_this_rank(name, rest, os.environ), name)
    if line.cfg or line.info:
        return show(name, line)
    if line.multirun and (advice := sweep.hint(line.overrides)):
        sys.stderr.write(f"featuremaps: hint: {advice}\n")
    results: list[dict[str, Any]] = []
    failures: list[Exception] = []

    def job(composed: DictConfig) -> None:
        try:
            results.append(carry_out(name, composed))
        except Exception as error:  # noqa: BLE001 - kept from Hydra, which would print it too
            failures.append(error)

    sys.argv = [f"featuremaps {name}", *line.typed]
    sweeps = line.multirun
    try:
        with composing(name, line.config_dir) as hydra:
            if not sweeps and (is_sweep(line.typed) or given_folders(line.typed)):
                sweeps = hydra.get_mode(name, line.overrides) is RunMode.MULTIRUN  # set in a file
            if sweeps:
                overrides = [*line.overrides, "hydra.mode=MULTIRUN"]
                skipped = sweep.run_sweep(hydra, name, overrides, partial(carry_out, name))
                return SKIPPED_EXIT_CODE if skipped else 0
            hydra.run(name, job, line.overrides)
    except (OSError, ValueError) as error:
        no_log = str(error).startswith("Unable to configure handler")
        cause = error.__cause__ if no_log else error
        if isinstance(cause, OSError):  # not of a job, but of its folder
            cause.add_note(
                f"set hydra.{'sweep' if sweeps else 'run'}.dir=FOLDER to write elsewhere"
            )
            raise cause from None
        raise
    if failures:
        raise failures[0]
    return SKIPPED_EXIT_CODE if results[0].get("skipped") else 0


def carry_out(name: str, composed: DictConfig) -> dict[str, Any]:
    """Run the job of a command in its configuration, perhaps in a process of a launcher."""
    from pipeline.cli import jobs
    from pipeline.config.hydra_schema import to_plain

    with jobs.without_exit():
        return jobs.TASKS[name](to_plain(composed))


def looking_command(name: str, rest: list[str]) -> int:
    """Run `layers` or `plan`: print layers, or the size of an extraction; extract nothing."""
    if asks_for_help(name, rest):
        return 0
    from hydra import compose

    from pipeline.cli.jobs import without_exit
    from pipeline.config import hydra_schema
    from pipeline.config.build import build_extraction

    line = command_line(name, rest, "run")
    if line.cfg or line.info:
        return show("run", line)
    if not any(word.startswith("archive=") for word in line.overrides):
        line.overrides.append("archive=null")  # the default is in a run folder
    with composing("run", line.config_dir):
        composed = compose("run", line.overrides)
    extraction = build_extraction(hydra_schema.to_plain(composed))
    from pipeline.extraction import disk_check, listing
    from pipeline.extraction.plan import make_plan

    fits = True
    with without_exit(), redirect_stdout(sys.stderr):  # the model's code may print
        if name == "layers":
            text = listing.list_layers(
                extraction,
                everything=line.all or line.functions,
                functions=line.functions,
                as_json=line.json,
            )
        else:
            facts = disk_check.facts(make_plan(extraction))
            text, fits = disk_check.describe(facts, as_json=line.json), facts["fits"]
    sys.stdout.write(text)
    return 0 if fits else DoesNotFitError.exit_code


def show(root: str, line: argparse.Namespace) -> int:
    """Let Hydra print the configuration (`--cfg`) or its own state (`--info`)."""
    with composing(root, line.config_dir) as hydra:
        if line.info:
            hydra.show_info(line.info, root, line.overrides)
            return 0
        try:  # it prints its error, too
            hydra.show_cfg(root, line.overrides, line.cfg, line.package, line.resolve)
        except SystemExit:
            raise ConfigError(f"--package: the configuration has no {line.package!r}") from None
    return 0


# Hydra's own parser (1.3.8) cannot be built on Python 3.14.
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_WITH_VALUE = (
    ("--package", "-p"), ("--config-path", "-cp"), ("--config-name", "-cn"), ("--config-dir", "-cd")
)  # fmt: skip
_SWITCHES = ("--resolve",), ("--run", "-r"), ("--multirun", "-m")
_OWN_SWITCHES = {"layers": (("--all",), ("--functions",), ("--json",)), "plan": (("--json",),)}


def command_line(name: str, words: Sequence[str], root: str) -> argparse.Namespace:
    """Return flags, `overrides` for Hydra, and all words as `typed`, with short forms expanded."""
    from pipeline.cli.shortcuts import spelled_out
    from pipeline.common.paths import local_path
    from pipeline.config.yaml_checks import check_yaml_files

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{name}: {message}; see featuremaps {name} --help")

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=_INFO)
    for option in _WITH_VALUE:
        parser.add_argument(*option)
    for switch in (*_SWITCHES, *_OWN_SWITCHES.get(name, ())):
        parser.add_argument(*switch, action="store_true")
    check_yaml_files(given_folders(words))
    expanded = spelled_out(words, root, name)
    if expanded != [*words]:
        typed = shlex.join(["featuremaps", name, *expanded])
        sys.stderr.write(f"featuremaps: interpreted as: {typed}\n")
    line, unknown = parser.parse_known_intermixed_args(expanded)
    if unknown:
        flags = ["--help", *(flag for flag in parser._option_string_actions if flag[:2] == "--")]
        raise ConfigError(f"{name}: unknown option {unknown[0]}; {suggestion(unknown[0], flags)}")
    if line.run + line.multirun + bool(line.cfg) + bool(line.info) > 1:
        raise ConfigError(f"{name}: Only one of --run, --multirun, --cfg and --info can be given")
    if (line.resolve or line.package) and not line.cfg:
        raise ConfigError(f"{name}: --resolve and --package need --cfg job")
    if line.config_path or line.config_name:
        raise ConfigError(
            "--config-path, --config-name: the primary configuration is fixed; add your own "
            "configurations with --config-dir FOLDER"
        )
    line.typed = expanded
    line.overrides = as_meant(line.overrides, root, sweep=is_sweep(expanded))
    if line.config_dir:
        folder = local_path(line.config_dir).absolute()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir: {folder}: no such folder")
        line.config_dir = str(folder)
    return line


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
        parser.add_argument("--config-dir", "-cd")
        parser.add_argument("overrides", nargs="*").completer = _complete


def _complete(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the completions of the last word, for argcomplete."""
    from pipeline.cli.completion import words

    return words(parsed_args.root, prefix, parsed_args.config_dir)


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
