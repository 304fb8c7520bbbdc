"""The command `export`: layers as arrays for other tools."""

import shlex
import sys
from pathlib import Path
from typing import Any

from pipeline.cli.arguments import Options, add_command, archives_into
from pipeline.common.errors import ConfigError
from pipeline.common.paths import confirm

_EXPORTED = ("npy", "npz", "csv", "parquet", "zarr", "mat")


def declare(commands: Any) -> None:
    """Add the subparser."""
    parser = add_command(commands, "export", export, "path", "out")
    parser.add_argument(
        "--to", choices=_EXPORTED, default="npy",
        help="file format (default npy)",
    )  # fmt: skip
    parser.add_argument(
        "--layers", nargs="+", metavar="LAYER", help="names, aliases or globs (default all)"
    )
    parser.add_argument(
        "--samples", nargs="+", metavar="SAMPLE", help="ids, globs, rows or ranges (default all)"
    )
    parser.add_argument(
        "--pool", choices=("none", "mean", "max"), default="none", help="pool over positions"
    )
    parser.add_argument(
        "--maps", choices=("mean", "max", "std", "norm", "pca"),
        help="export maps instead: a channel statistic, or three PCA components fitted to the "
        "dataset, at every position",
    )  # fmt: skip
    parser.add_argument("--flatten", action="store_true", help="flatten to one vector per sample")
    parser.add_argument(
        "--rdm", action="store_true",
        help="export RDMs instead: 1 - correlation between samples, from means over positions, or "
        "from whole maps with --flatten",
    )  # fmt: skip


def export(options: Options) -> int:
    """Write layers as arrays for other tools, with ids and labels."""
    from functools import partial

    from pipeline.archive.reading.archive import Archive
    from pipeline.archive.tools.export import Derived, export
    from pipeline.archive.tools.export_files import RDM
    from pipeline.renderers.map_arrays import channel_maps, pca_maps
    from pipeline.rendering.sample_selection import choose_rows
    from pipeline.similarity.rdm import rdm_of

    if options.maps and options.pool != "none":
        raise ConfigError("export: --pool and --maps exclude each other; give one of them")
    if options.rdm and (options.maps or options.pool == "max"):
        raise ConfigError(
            "export: --rdm excludes --maps and --pool max; use it alone or with --flatten"
        )
    values = RDM if options.rdm else f"{options.maps} maps" if options.maps else "activations"
    out: Path = options.out.expanduser()
    _refuse_file(out, options)
    for path, name in archives_into(out, options.path):
        with Archive.open(path) as opened:
            archive = opened.with_layers(options.layers or ())
            ids = [sample.id for sample in archive.samples]
            rows = choose_rows(ids, options.samples, key="--samples") if options.samples else None
            derived: Derived | None = None
            if options.rdm:
                derived = partial(rdm_of, archive, flatten=options.flatten)
            elif options.maps == "pca":
                derived = partial(pca_maps, archive)
            elif options.maps:
                derived = partial(channel_maps, archive, statistic=options.maps)
            files = export(
                archive, out / name if name else out, options.to, rows=rows,
                pool=options.pool, flatten=options.flatten and not options.rdm,
                derived=derived, values=values,
            )  # fmt: skip
        confirm(*files)
        for file in files:
            sys.stdout.write(f"exported: {file}\n")
    return 0


def _refuse_file(out: Path, options: Options) -> None:
    """Raise ConfigError if the output folder is named like a file."""
    ending = out.suffix.lower().removeprefix(".")
    if ending in ("h5", "hdf5"):
        command = ["featuremaps", "pack", str(options.path), str(options.out)]
        raise ConfigError(f"export: {out} names an HDF5 file; use {shlex.join(command)}")
    if ending in _EXPORTED and not out.exists():
        folder = str(options.out.with_name(f"{out.stem}_{ending}"))
        words = [str(options.path), folder, "--to", ending]
        raise ConfigError(
            f"export: {out} names a file, but export writes a folder; use "
            f"{shlex.join(['featuremaps', 'export', *words])}"
        )
