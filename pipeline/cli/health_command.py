"""The command `health`: dead channels, zeros, ranges and drift of layers across archives."""

import sys
from typing import Any

from pipeline.cli.arguments import Options, add_command, add_results
from pipeline.cli.result_folders import add_to_catalogue, default_folder
from pipeline.common.progress import table

_SHOWN = 40
"""Largest number of rows printed as a table."""


def declare(commands: Any) -> None:
    """Add the subparser."""
    parser = add_command(commands, "health", carry_out, as_json=True)
    add_results(parser, "health", "archives, or a sweep's folder; drift is relative to the first")


def carry_out(options: Options) -> int:
    """Show dead channels, zeros, ranges and non-finite values of layers; drift across archives."""
    from pipeline.common.paths import confirm
    from pipeline.similarity.health import health
    from pipeline.similarity.health_figures import change, number, percent, whole
    from pipeline.similarity.health_page import as_json, faults, write_health

    out = options.out or default_folder(options.archives, "health")
    result = health(options.archives, layers=options.layers)
    page = write_health(result, out.expanduser())
    confirm(page)
    add_to_catalogue(page, options.archives)
    if options.json:
        sys.stdout.write(as_json(result))
        return 0
    cells = list(result.cells.values())
    if len(cells) <= _SHOWN:
        titles = dict(zip(result.archives, result.titles, strict=True))
        heads = ["layer", "archive", "channels", "dead", "constant", "zeros", "mean", "std",
                 "largest", "not finite", "mean drift", "std drift"]  # fmt: skip
        rows = [
            [cell.alias, titles[cell.archive], *map(whole, (cell.channels, cell.dead,
             cell.constant)), percent(cell.zero_fraction), *map(number, (cell.mean, cell.std,
             cell.largest)), whole(cell.nonfinite), change(cell.mean_drift),
             change(cell.std_drift)]
            for cell in sorted(cells, key=lambda cell: list(result.layers).index(cell.layer))
        ]  # fmt: skip
        sys.stdout.write(table(heads, rows, right=range(2, len(heads))) + "\n")
    else:
        for archive, layer, fault in faults(result)[:_SHOWN]:
            sys.stdout.write(f"{layer} · {archive}: {fault}\n")
    for note in result.notes:
        sys.stdout.write(f"note:   {note}\n")
    count = len(faults(result))
    sys.stdout.write(f"layers: {len(cells)} examined, {count} to look at\n")
    sys.stdout.write(f"health: {page}\n")
    return 0
