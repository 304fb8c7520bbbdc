"""The command `similarity`: how alike layers and models are, from their archives alone."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from pipeline.cli.archive_commands import archive_argument
from pipeline.cli.result_folders import add_to_catalogue, default_folder
from pipeline.common.errors import ConfigError
from pipeline.common.progress import table

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
    parser.add_argument("--measures", help="of cka, rsa, procrustes, with commas (default cka)")
    parser.add_argument(
        "--against", nargs="+", type=Path, metavar="RDM", default=(),
        help="instead: RSA of each layer against RDMs in .npy, .npz or .csv files, a subject each "
        "or several",
    )  # fmt: skip
    parser.add_argument(
        "--ids", type=Path, metavar="FILE",
        help="sample ids of RDMs that have none: a line each, or a table with a column id",
    )  # fmt: skip
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
    logging.getLogger("pipeline.similarity" if shown_by_bars else "pipeline").setLevel(logging.INFO)
    from pipeline.common.paths import confirm
    from pipeline.similarity.similarity import similarity
    from pipeline.similarity.similarity_page import as_json, shown, write_similarity

    if options.against:
        return _against(options)
    if options.ids:
        raise ConfigError("similarity: --ids names the samples of RDMs; give --against too")
    out = options.out or default_folder(options.archives, "similarity")
    found = similarity(
        options.archives, layers=options.layers, over=options.over, samples=options.samples,
        measures=[word for word in (options.measures or "cka").split(",") if word],
        seed=options.seed, bootstrap=options.bootstrap,
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


def _against(options: argparse.Namespace) -> int:
    """Compare the RDMs of layers with those of files, and write table, figure and page."""
    from pipeline.common.paths import confirm
    from pipeline.similarity.against import rsa_against
    from pipeline.similarity.against_page import against_json, write_against
    from pipeline.similarity.similarity_page import interval, shown

    if options.measures not in (None, "rsa"):
        raise ConfigError("similarity: --against compares RDMs: leave --measures out, or give rsa")
    out = options.out or default_folder(options.archives, "against")
    found = rsa_against(
        options.archives, options.against, ids=options.ids, layers=options.layers,
        over=options.over, samples=options.samples, seed=options.seed, bootstrap=options.bootstrap,
    )  # fmt: skip
    page = write_against(found, out.expanduser())
    confirm(page)
    if options.json:
        sys.stdout.write(against_json(found))
        return 0
    rows = [
        [layer.alias, shown(value), interval(low, high)]
        for layer, value, low, high in zip(
            found.layers, found.value, found.low, found.high, strict=True
        )
    ]
    sys.stdout.write(table(["layer", "rsa", "95 %"], rows, right=(1, 2)) + "\n")
    if len(found.subjects) > 1:
        bounds = interval(*found.ceiling)
        sys.stdout.write(f"ceiling:    {bounds} ({len(found.subjects)} subjects)\n")
    for note in found.notes:
        sys.stdout.write(f"note:       {note}\n")
    sys.stdout.write(f"compared:   {len(rows)} layers over {found.samples} samples\n")
    sys.stdout.write(f"against:    {page}\n")
    return 0
