"""Commands that compare layers across archives and write a page: similarity and health."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.archive.format import schema
from pipeline.cli.arguments import Options, add_command, archive_argument
from pipeline.common.errors import ConfigError, plural
from pipeline.common.paths import confirm
from pipeline.common.places import local
from pipeline.common.progress import table

_MATRIX = 12
"""Largest number of layers printed as a matrix."""
_TABLE = 40
"""Largest number of rows printed as a table of health."""


def declare(commands: Any) -> None:
    """Add the subparsers."""

    def add(name: str, carry_out: Callable[[Options], int], archives: str) -> Any:
        parser = add_command(commands, name, carry_out, as_json=True)
        parser.add_argument(
            "archives", nargs="+", type=archive_argument, metavar="ARCHIVE", help=archives
        )
        parser.add_argument(
            "--layers", nargs="+", metavar="GLOB", default=(), help="names, aliases or globs"
        )
        parser.add_argument(
            "--out", type=Path, metavar="DIR",
            help=f"results folder (default: {name} in the run or sweep folder, or outputs/{name})",
        )  # fmt: skip
        return parser

    parser = add("similarity", similarity, "archives, or a sweep's folder")
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
    add("health", health, "archives, or a sweep's folder; drift is relative to the first")


def similarity(options: Options) -> int:
    """Compare layers and models by CKA, RSA or Procrustes across archives or a sweep."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    shown_by_bars = sys.stderr.isatty()
    logging.getLogger("pipeline.similarity" if shown_by_bars else "pipeline").setLevel(logging.INFO)
    from pipeline.similarity.results import layer_names
    from pipeline.similarity.similarity import similarity
    from pipeline.similarity.similarity_page import as_json, shown, write_similarity

    common = {"layers": options.layers, "over": options.over, "samples": options.samples,
              "seed": options.seed, "bootstrap": options.bootstrap}  # fmt: skip
    if options.against:
        return _against(options, common)
    if options.ids:
        raise ConfigError("similarity: --ids needs RDMs; add --against")
    out = _folder(options, "similarity")
    measures = (options.measures or "cka").split(",")
    result = similarity(options.archives, measures=measures, **common)
    page = write_similarity(result, out)
    names, text = layer_names(result.layers), ""
    for measure, figures in result.figures.items() if len(names) <= _MATRIX else ():
        rows = [[name, *map(shown, row)] for name, row in zip(names, figures.value, strict=True)]
        right = range(1, len(names) + 1)
        text += table([str(measure), *names], rows, right=right) + "\n"
    compared = _compared(len(names), result.samples)
    lines = _lines(11, result.notes, compared=compared, similarity=page)
    return _report(options, page, as_json(result), text + lines)


def _against(options: Options, common: dict[str, Any]) -> int:
    """Compare the RDMs of layers with RDM files; print a table, write a figure and a page."""
    from pipeline.similarity.against import rsa_against
    from pipeline.similarity.against_page import against_json, write_against
    from pipeline.similarity.results import layer_names
    from pipeline.similarity.similarity_page import interval, shown

    if options.measures not in (None, "rsa"):
        raise ConfigError("similarity: --against supports only rsa; remove --measures")
    out = _folder(options, "against")
    result = rsa_against(options.archives, options.against, ids=options.ids, **common)
    page = write_against(result, out)
    rows = [
        [name, shown(value), interval(low, high)]
        for name, value, low, high in zip(
            layer_names(result.layers), result.value, result.low, result.high, strict=True
        )
    ]
    text = table(["layer", "rsa", "95 %"], rows, right=(1, 2)) + "\n"
    if len(result.subjects) > 1:
        text += f"ceiling:    {interval(*result.ceiling)} ({len(result.subjects)} subjects)\n"
    compared = _compared(len(rows), result.samples)
    lines = _lines(11, result.notes, compared=compared, against=page)
    return _report(options, page, against_json(result), text + lines)


def _compared(layers: int, samples: int) -> str:
    return f"{plural(layers, 'layer')} over {plural(samples, 'sample')}"


def health(options: Options) -> int:
    """Show dead channels, zeros, ranges and non-finite values of layers; drift across archives."""
    from pipeline.similarity.health import health
    from pipeline.similarity.health_page import (
        as_json,
        change,
        faults,
        percent,
        three_digits,
        whole_number,
        write_health,
    )

    out = _folder(options, "health")
    result = health(options.archives, layers=options.layers)
    page = write_health(result, out)
    cells = list(result.cells.values())
    if len(cells) <= _TABLE:
        titles = dict(zip(result.archives, result.titles, strict=True))
        heads = ["layer", "archive", "channels", "dead", "constant", "zeros", "mean", "std",
                 "largest", "not finite", "mean drift", "std drift"]  # fmt: skip
        rows = [
            [cell.alias, titles[cell.archive], *map(whole_number, (cell.channels, cell.dead,
             cell.constant)), percent(cell.zero_fraction), *map(three_digits, (cell.mean, cell.std,
             cell.largest)), whole_number(cell.nonfinite), change(cell.mean_drift),
             change(cell.std_drift)]
            for cell in sorted(cells, key=lambda cell: list(result.layers).index(cell.layer))
        ]  # fmt: skip
        text = table(heads, rows, right=range(2, len(heads))) + "\n"
    else:
        shown = faults(result)[:_TABLE]
        text = "".join(f"{layer} · {archive}: {fault}\n" for archive, layer, fault in shown)
    examined = f"{len(cells)} examined, {len(faults(result))} to look at"
    lines = _lines(7, result.notes, layers=examined, health=page)
    return _report(options, page, as_json(result), text + lines)


def _lines(width: int, notes: Sequence[str], **facts: object) -> str:
    """Return notes and lines `name: value`, with values aligned at column `width`."""
    pairs = (*(("note", note) for note in notes), *facts.items())
    return "".join(f"{f'{name}:':{width}} {value}\n" for name, value in pairs)


def _folder(options: Options, kind: str) -> Path:
    """Return `--out`, or a folder in the run or sweep folder of a single archive, or `outputs`."""
    if options.out:
        return Path(options.out.expanduser())
    if len(options.archives) == 1:
        path = options.archives[0].expanduser()
        paths = schema.archives_of(path)
        if len(paths) > 1 and (folder := local(path)):
            return folder / kind
        if (archive := local(paths[0])) and archive.name == "archive":
            return archive.parent / kind
    return Path("outputs") / kind


def _report(options: Options, page: Path, json_text: str, text: str) -> int:
    """Print a result; update the links to its page in the catalogue of its sweep, if any."""
    confirm(page)
    sweep = page.parent.parent
    if (sweep / "catalogue.csv").is_file() and page.parent.name in ("health", "similarity"):
        from pipeline.cli.sweep import jobs
        from pipeline.gallery.catalogue import write_catalogue

        rows = jobs(sweep)
        remote = {row["archive"] for row in rows if "://" in row.get("archive", "")}
        if remote <= {*map(str, options.archives)}:  # else their options are unknown
            write_catalogue(sweep, rows)
    sys.stdout.write(json_text if options.json else text)
    return 0
