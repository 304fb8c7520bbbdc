"""The command `health`: dead channels, zeros, ranges and drift of layers over archives."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pipeline.cli.archive_commands import archive_argument
from pipeline.cli.result_folders import add_to_catalogue, default_folder
from pipeline.common.progress import table

_SHOWN = 40
"""Rows up to which the terminal shows the table."""


def declare(commands: Any) -> None:
    """Declare the command as a subparser of argparse."""
    text = "dead channels, zeros, ranges and non-finite values of layers; their drift over archives"
    parser = commands.add_parser("health", help=text, description=text)
    parser.set_defaults(carry_out=carry_out)
    parser.add_argument(
        "archives", nargs="+", type=archive_argument, metavar="ARCHIVE",
        help="archives, or a sweep's folder; drift is against the first",
    )  # fmt: skip
    parser.add_argument(
        "--layers", nargs="+", metavar="GLOB", default=(), help="names, aliases or globs"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder of the results (default: health in the run's or the sweep's folder, else "
        "outputs/health)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for programs")


def carry_out(options: argparse.Namespace) -> int:
    """Examine the layers of archives, and write table, figure and page."""
    from pipeline.common.paths import confirm
    from pipeline.similarity.health import health
    from pipeline.similarity.health_figures import change, number, percent, whole
    from pipeline.similarity.health_page import as_json, faults, write_health

    out = options.out or default_folder(options.archives, "health")
    found = health(options.archives, layers=options.layers)
    page = write_health(found, out.expanduser())
    confirm(page)
    add_to_catalogue(page)
    if options.json:
        sys.stdout.write(as_json(found))
        return 0
    cells = list(found.cells.values())
    if len(cells) <= _SHOWN:
        titles = dict(zip(found.archives, found.titles, strict=True))
        heads = ["layer", "archive", "channels", "dead", "constant", "zeros", "mean", "std",
                 "largest", "not finite", "mean drift", "std drift"]  # fmt: skip
        rows = [
            [cell.alias, titles[cell.archive], *map(whole, (cell.channels, cell.dead,
             cell.constant)), percent(cell.zero_fraction), *map(number, (cell.mean, cell.std,
             cell.largest)), whole(cell.nonfinite), change(cell.mean_drift),
             change(cell.std_drift)]
            for cell in sorted(cells, key=lambda cell: list(found.layers).index(cell.layer))
        ]  # fmt: skip
        sys.stdout.write(table(heads, rows, right=range(2, len(heads))) + "\n")
    else:
        for archive, layer, fault in faults(found)[:_SHOWN]:
            sys.stdout.write(f"{layer} · {archive}: {fault}\n")
    for note in found.notes:
        sys.stdout.write(f"note:   {note}\n")
    count = len(faults(found))
    sys.stdout.write(f"layers: {len(cells)} examined, {count} to look at\n")
    sys.stdout.write(f"health: {page}\n")
    return 0
