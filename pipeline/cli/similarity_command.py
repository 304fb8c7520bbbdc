"""The command `similarity`: compare layers and models by their archives."""

import logging
import sys
from pathlib import Path
from typing import Any

from pipeline.cli.arguments import Options, add_command, add_results
from pipeline.cli.result_folders import add_to_catalogue, default_folder
from pipeline.common.errors import ConfigError
from pipeline.common.progress import table

_SHOWN = 12
"""Largest number of layers printed as a matrix."""


def declare(commands: Any) -> None:
    """Add the subparser."""
    parser = add_command(commands, "similarity", carry_out, as_json=True)
    add_results(parser, "similarity", "archives, or a sweep's folder")
    parser.add_argument("--measures", help="cka, rsa, procrustes, comma-separated (default cka)")
    parser.add_argument(
        "--against", nargs="+", type=Path, metavar="RDM", default=(),
        help="compute RSA of each layer against RDMs in .npy, .npz or .csv files instead, of one "
        "subject or several per file",
    )  # fmt: skip
    parser.add_argument(
        "--ids", type=Path, metavar="FILE",
        help="sample ids of RDMs without ids: one per line, or a table with a column id",
    )  # fmt: skip
    parser.add_argument(
        "--over", default="mean", choices=("mean", "flatten", "positions"),
        help="mean over positions (default), flattened maps, or positions as rows",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, metavar="N", help="use a random sample of N")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument(
        "--bootstrap", type=int, default=200, metavar="N",
        help="resamples for the intervals (default 200, 0 disables them)",
    )  # fmt: skip


def carry_out(options: Options) -> int:
    """Compare layers and models by CKA, RSA or Procrustes across archives or a sweep."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    shown_by_bars = sys.stderr.isatty()
    logging.getLogger("pipeline.similarity" if shown_by_bars else "pipeline").setLevel(logging.INFO)
    from pipeline.common.paths import confirm
    from pipeline.similarity.similarity import similarity
    from pipeline.similarity.similarity_page import as_json, shown, write_similarity

    if options.against:
        return _against(options)
    if options.ids:
        raise ConfigError("similarity: --ids needs RDMs; add --against")
    out = options.out or default_folder(options.archives, "similarity")
    result = similarity(
        options.archives, layers=options.layers, over=options.over, samples=options.samples,
        measures=(options.measures or "cka").split(","),
        seed=options.seed, bootstrap=options.bootstrap,
    )  # fmt: skip
    page = write_similarity(result, out.expanduser())
    confirm(page)
    add_to_catalogue(page, options.archives)
    if options.json:
        sys.stdout.write(as_json(result))
        return 0
    names = [layer.alias for layer in result.layers]
    for measure, figures in result.figures.items():
        if len(names) <= _SHOWN:
            rows = [
                [name, *map(shown, row)] for name, row in zip(names, figures.value, strict=True)
            ]
            columns = range(1, len(names) + 1)
            sys.stdout.write(table([str(measure), *names], rows, right=columns) + "\n")
    for note in result.notes:
        sys.stdout.write(f"note:       {note}\n")
    sys.stdout.write(f"compared:   {len(names)} layers over {result.samples} samples\n")
    sys.stdout.write(f"similarity: {page}\n")
    return 0


def _against(options: Options) -> int:
    """Compare the RDMs of layers with RDM files; print a table, write a figure and a page."""
    from pipeline.common.paths import confirm
    from pipeline.similarity.against import rsa_against
    from pipeline.similarity.against_page import against_json, write_against
    from pipeline.similarity.similarity_page import interval, shown

    if options.measures not in (None, "rsa"):
        raise ConfigError("similarity: --against supports only rsa; remove --measures")
    out = options.out or default_folder(options.archives, "against")
    result = rsa_against(
        options.archives, options.against, ids=options.ids, layers=options.layers,
        over=options.over, samples=options.samples, seed=options.seed, bootstrap=options.bootstrap,
    )  # fmt: skip
    page = write_against(result, out.expanduser())
    confirm(page)
    if options.json:
        sys.stdout.write(against_json(result))
        return 0
    rows = [
        [layer.alias, shown(value), interval(low, high)]
        for layer, value, low, high in zip(
            result.layers, result.value, result.low, result.high, strict=True
        )
    ]
    sys.stdout.write(table(["layer", "rsa", "95 %"], rows, right=(1, 2)) + "\n")
    if len(result.subjects) > 1:
        bounds = interval(*result.ceiling)
        sys.stdout.write(f"ceiling:    {bounds} ({len(result.subjects)} subjects)\n")
    for note in result.notes:
        sys.stdout.write(f"note:       {note}\n")
    sys.stdout.write(f"compared:   {len(rows)} layers over {result.samples} samples\n")
    sys.stdout.write(f"against:    {page}\n")
    return 0
