"""The command `similarity`: how alike layers and models are, from their archives alone."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from pipeline.cli.archive_commands import archive_argument
from pipeline.cli.result_folders import add_to_catalogue, default_folder
from pipeline.foundation.progress import table

_SHOWN = 12
"""Layers up to which the terminal shows the matrix."""


def declare(commands: Any) -> None:
    """Declare the command as a subparser of argparse."""
    text = "how alike layers and models are: CKA, RSA, Procrustes over archives or a sweep"
    parser = commands.add_parser("similarity", help=text, description=text)
    parser.set_defaults(carry_out=carry_out)
    parser.add_argument("archives", nargs="+", type=archive_argument, metavar="ARCHIVE")
    parser.add_argument(
        "--layers", nargs="+", metavar="GLOB", default=(), help="names, aliases or globs"
    )
    parser.add_argument(
        "--measures", default="cka", help="of cka, rsa, procrustes, with commas (default cka)"
    )
    parser.add_argument(
        "--over", default="mean", choices=("mean", "flatten", "positions"),
        help="mean of positions (default), maps flattened, or positions as rows",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, metavar="N", help="so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is drawn (default 0)")
    parser.add_argument(
        "--bootstrap", type=int, default=200, metavar="N",
        help="draws for the intervals (default 200, 0 for none)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder of the results (default: similarity in the run's or the sweep's folder, "
        "else outputs/similarity)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for programs")


def carry_out(options: argparse.Namespace) -> int:
    """Compare the layers of archives, and write table, figures and page."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    shown_by_bars = sys.stderr.isatty()
    logging.getLogger("pipeline.analysis" if shown_by_bars else "pipeline").setLevel(logging.INFO)
    from pipeline.analysis.similarity import similarity
    from pipeline.foundation.paths import confirm
    from pipeline.gallery.similarity_page import as_json, shown, write_similarity

    out = options.out or default_folder(options.archives, "similarity")
    found = similarity(
        options.archives, layers=options.layers, over=options.over, samples=options.samples,
        measures=[word for word in options.measures.split(",") if word], seed=options.seed,
        bootstrap=options.bootstrap,
    )  # fmt: skip
    page = write_similarity(found, out.expanduser())
    confirm(page)
    add_to_catalogue(page)
    if options.json:
        sys.stdout.write(as_json(found))
        return 0
    names = [layer.alias for layer in found.layers]
    for measure, figures in found.figures.items():
        if len(names) <= _SHOWN:
            rows = [
                [name, *map(shown, row)] for name, row in zip(names, figures.value, strict=True)
            ]
            columns = range(1, len(names) + 1)
            sys.stdout.write(table([str(measure), *names], rows, right=columns) + "\n")
    for note in found.notes:
        sys.stdout.write(f"note:       {note}\n")
    sys.stdout.write(f"compared:   {len(names)} layers over {found.samples} samples\n")
    sys.stdout.write(f"similarity: {page}\n")
    return 0
