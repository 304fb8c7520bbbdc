"""The commands that take an archive and plain arguments: info, verify, stitch, pack, compare."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import SKIPPED_EXIT_CODE, ConfigError


def info_command(rest: list[str]) -> int:
    """Describe an archive."""
    parser = Parser("info", "what is in an archive, also a partial one")
    parser.add_argument("path", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(rest)
    from pipeline.archive.info import archive_facts, describe

    facts = archive_facts(options.path)
    sys.stdout.write(describe(facts, as_json=options.json))
    return 1 if facts["fault"] else 0


def verify_command(rest: list[str]) -> int:
    """Read a whole archive and name the first fault."""
    parser = Parser(
        "verify", "reads everything: sha256, rows and their order, checksums, statistics"
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(rest)
    from pipeline.archive.verify import describe, verify

    sys.stdout.write(describe(verify(options.path), as_json=options.json))
    return 0


def stitch_command(rest: list[str]) -> int:
    """Complete an archive whose shards other jobs have written."""
    words = [word.removeprefix("archive=") for word in rest]
    parser = Parser("stitch", "completes an archive: featuremaps stitch archive=PATH")
    parser.add_argument("archive", type=Path)
    archive: Path = parser.parse_args(words).archive.expanduser()
    from pipeline.archive import lock
    from pipeline.archive.manifest import Manifest
    from pipeline.archive.stitch import stitch

    Manifest.read(archive)  # says so if it is no archive, before a lock is made there
    with lock.writing(archive):
        complete = stitch(archive)
    sys.stdout.write(
        f"archive:  {archive}  ({complete.samples} samples, {complete.shards} shards)\n"
    )
    return SKIPPED_EXIT_CODE if complete.skipped else 0


def pack_command(rest: list[str]) -> int:
    """Make one self-contained file of an archive."""
    parser = Parser("pack", "one self-contained HDF5 file")
    parser.add_argument("path", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(rest)
    from pipeline.archive.pack import pack
    from pipeline.archive.reader import Archive

    with Archive.open(options.path) as archive:
        out = pack(archive, options.out)
    sys.stdout.write(f"packed:   {out}\n")
    return 0


def compare_command(rest: list[str]) -> int:
    """Compare two archives; exit 1 where they differ."""
    parser = Parser("compare", "two archives: the same samples, the same values?")
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_tolerances()
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(rest)
    from pipeline.archive.compare import compare, describe
    from pipeline.archive.reader import Archive

    with Archive.open(options.a) as a, Archive.open(options.b) as b:
        result = compare(a, b, rtol=options.rtol, atol=options.atol)
    sys.stdout.write(describe(result, as_json=options.json))
    return 0 if result["equal"] else 1


def reproduce_command(rest: list[str]) -> int:
    """Carry out an archive's recorded configuration again and compare; exit 1 if they differ."""
    parser = Parser("reproduce", "extracts again what an archive records, and compares the two")
    parser.add_argument("path", type=Path)
    parser.add_argument("out", type=Path, help="folder of the new archive")
    parser.add_tolerances()
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="also sources that import or run code, and arguments that may do so",
    )
    parser.add_argument("--allow-network", action="store_true", help="fetch what the archive names")
    parser.add_argument(
        "--allow-path",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="also read below this folder; without, below the working folder and those of the "
        "two archives",
    )
    parser.add_argument("--dry-run", action="store_true", help="only show the configuration")
    options = parser.parse_args(rest)
    from pipeline.archive.compare import describe
    from pipeline.archive.manifest import Manifest
    from pipeline.reproduce import (
        Allowed,
        fetched,
        folders_of,
        needs_code,
        recorded_extraction,
        reproduce,
        shown,
    )  # fmt: skip

    manifest = Manifest.read(options.path)
    sys.stdout.write(shown(manifest))
    allowed = Allowed(
        code=options.allow_code,
        network=options.allow_network,
        folders=folders_of(options.path, options.out, options.allow_path),
    )
    extraction = recorded_extraction(manifest, options.out, allowed)
    for what, node in needs_code(manifest):
        sys.stdout.write(f"--allow-code lets in: {what}: {node}\n")
    if allowed.network:
        sys.stdout.write(f"--allow-network lets in: {fetched(extraction)}\n")
    sys.stdout.flush()
    if options.dry_run:
        return 0
    result = reproduce(
        options.path, options.out, rtol=options.rtol, atol=options.atol, allowed=allowed
    )
    for line in result.pop("changed"):
        sys.stdout.write(f"changed since: {line}\n")
    sys.stdout.write(describe(result, as_json=False))
    return 0 if result["equal"] else 1


class Parser(argparse.ArgumentParser):
    """argparse with this program's name and one-line errors."""

    def __init__(self, command: str, description: str) -> None:
        """Parse the arguments of `featuremaps <command>`."""
        super().__init__(prog=f"featuremaps {command}", description=description)

    def add_tolerances(self) -> None:
        """Take what a comparison allows for."""
        self.add_argument("--rtol", type=float, default=0.0, help="relative tolerance (default 0)")
        self.add_argument("--atol", type=float, default=0.0, help="absolute tolerance (default 0)")

    def error(self, message: str) -> Any:
        """Raise instead of leaving the process.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "info": info_command,
    "verify": verify_command,
    "stitch": stitch_command,
    "pack": pack_command,
    "compare": compare_command,
    "reproduce": reproduce_command,
}
"""Name → what carries it out and returns the exit code."""
