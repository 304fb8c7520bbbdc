"""Commands on archives: info, verify, stitch, copy, pack, compare, cite, reproduce."""

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from pipeline.archive.format import schema
from pipeline.cli.arguments import Options, add_command, archives_into, place_argument, say_results
from pipeline.common.errors import SKIPPED_EXIT_CODE, ConfigError, plural
from pipeline.common.paths import confirm
from pipeline.common.places import Place, local_file
from pipeline.common.progress import size


def declare(commands: Any) -> None:
    """Add the subparsers."""

    def tolerances(parser: argparse.ArgumentParser) -> None:
        for name, kind in (("--rtol", "relative"), ("--atol", "absolute")):
            parser.add_argument(
                name, type=_tolerance, default=0.0, help=f"{kind} tolerance (default 0)"
            )

    add_command(commands, "info", info, "path", as_json=True)
    checked = add_command(commands, "verify", verify, "path", as_json=True)
    checked.add_argument(
        "--sha256", action="store_true", help="also print every file's SHA-256, for sha256sum -c"
    )
    add_command(commands, "stitch", stitch, "archive")
    copied = add_command(commands, "copy", copy, "path")
    copied.add_argument("destination", type=place_argument, help="folder or URL to write")
    add_command(commands, "pack", pack, "path", "out")
    add_command(commands, "cite", cite, "path", as_json=True)
    tolerances(add_command(commands, "compare", compare, "a", "b", as_json=True))
    again = add_command(commands, "reproduce", reproduce, "path", "out")
    tolerances(again)
    again.add_argument(
        "--allow-code",
        action="store_true",
        help="allow sources and arguments that import or run code",
    )
    again.add_argument(
        "--allow-network", action="store_true", help="allow downloads that the archive names"
    )
    again.add_argument(
        "--allow-path",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="allow reading below this folder too (default: the working folder and the folders of "
        "the two archives)",
    )
    again.add_argument("--dry-run", action="store_true", help="only print the configuration")


def _tolerance(word: str) -> float:
    value = float(word)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and not negative, got {word}")
    return value


def info(options: Options) -> int:
    """Show the contents of an archive, complete or partial."""
    from pipeline.archive.tools.info import archive_facts, describe

    facts = [archive_facts(path) for path in schema.archives_of(options.path)]
    say_results(facts, "".join(map(describe, facts)), options)
    return 1 if any(archive["fault"] for archive in facts) else 0


def verify(options: Options) -> int:
    """Read the whole archive: digests, rows, checksums, statistics.

    Raises at the first fault.
    """
    from pipeline.archive.tools.verify import describe, verify
    from pipeline.common.atomic_files import file_sha256

    paths = schema.archives_of(options.path)
    results = [verify(path) for path in paths]
    say_results(results, "".join(map(describe, results)), options)
    for path in paths if options.sha256 else ():
        folder = local_file(path, "--sha256")
        for file in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if file.is_file() and not file.name.startswith(schema.LOCK):
                sys.stdout.write(f"{file_sha256(file)}  {file}\n")
    return 0


def stitch(options: Options) -> int:
    """Finish an archive whose shards were written by several jobs."""
    from pipeline.archive.format.manifest import Manifest
    from pipeline.archive.writing import lock
    from pipeline.archive.writing.finalize import stitch

    archive: Place = options.archive
    Manifest.read(archive)  # fails before a lock is created in a folder that is not an archive
    with lock.writing(archive):
        complete = stitch(archive)
    confirm(archive / schema.COMPLETE, archive / schema.INDEX)
    sys.stdout.write(
        f"archive:  {archive}  ({plural(complete.samples, 'sample')}, "
        f"{plural(complete.shards, 'shard')})\n"
    )
    return SKIPPED_EXIT_CODE if complete.skipped else 0


def copy(options: Options) -> int:
    """Copy an archive between folders and object stores (s3://, gs://, az://, https://)."""
    from pipeline.archive.tools.copy import copy

    complete = copy(options.path, options.destination)
    confirm(options.destination / schema.COMPLETE)
    count = (
        f"{plural(complete.samples, 'sample')}, {len(complete.files)} files, {size(complete.bytes)}"
    )
    sys.stdout.write(f"copied:   {options.destination}  ({count})\n")
    return 0


def pack(options: Options) -> int:
    """Write an archive as one self-contained HDF5 file."""
    from pipeline.archive.reading.archive import Archive
    from pipeline.archive.tools.pack import pack

    for path, name in archives_into(options.out, options.path):
        with Archive.open(path) as archive:
            file = pack(archive, options.out / f"{name}.h5" if name else options.out)
        confirm(file)
        sys.stdout.write(f"packed:   {file}\n")
    return 0


def cite(options: Options) -> int:
    """Print BibTeX for an archive, and facts to report: model, weights, dataset, versions."""
    from pipeline.archive.reading.archive import Archive
    from pipeline.archive.tools.provenance import citation, provenance

    facts, texts = [], []
    for path in schema.archives_of(options.path):
        with Archive.open(path) as archive:
            facts.append(provenance(archive))
            texts.append(citation(archive))
    say_results(facts, "\n".join(texts), options)
    return 0


def compare(options: Options) -> int:
    """Compare the samples and values of two archives.

    Archives of two sweeps are compared by name. Returns 1 if any differ.
    """
    from pipeline.archive.tools.compare import compare, describe

    results = {}
    for name, path_a, path_b in _pairs(options.a, options.b):
        results[name] = compare(path_a, path_b, rtol=options.rtol, atol=options.atol)
    texts = [f"{name}\n" * bool(name) + describe(result) for name, result in results.items()]
    say_results([results.get("", results)], "".join(texts), options)
    return 0 if all(result["equal"] for result in results.values()) else 1


def _pairs(first: Place, second: Place) -> list[tuple[str, Place, Place]]:
    """Return (name, archive, archive) triples; the name of a single pair is empty."""
    sweeps = [schema.archives_of(path) for path in (first, second)]
    if not all(archives != [path] for archives, path in zip(sweeps, (first, second), strict=True)):
        return [("", first, second)]
    a, b = ({schema.name_of(path): path for path in archives} for archives in sweeps)
    if unmatched := sorted(set(a) ^ set(b)):
        where = first if unmatched[0] in a else second
        raise ConfigError(f"{unmatched[0]}: only in {where}; compare sweeps with equal archives")
    return [(name, a[name], b[name]) for name in a]


def reproduce(options: Options) -> int:
    """Repeat the recorded extraction and compare the results.

    Returns 1 if the archives differ.
    """
    from pipeline.archive.reading.archive import Archive
    from pipeline.archive.tools.compare import describe
    from pipeline.cli import reproduce as steps

    with Archive.open(options.path) as archive:
        manifest = archive.manifest
    sys.stdout.write(steps.shown(manifest))
    allowed = steps.Allowed(
        code=options.allow_code,
        network=options.allow_network,
        folders=steps.folders_of(options.path, options.out, options.allow_path),
    )
    extraction = steps.recorded_extraction(manifest, options.out, allowed)
    for source, node in steps.needs_code(manifest):
        sys.stdout.write(f"--allow-code allows: {source}: {node}\n")
    if allowed.network:
        sys.stdout.write(f"--allow-network allows: {steps.fetched(extraction)}\n")
    sys.stdout.flush()
    if options.dry_run:
        return 0
    if (options.out / schema.COMPLETE).exists():
        both = shlex.join(map(str, (options.path, options.out)))
        raise ConfigError(
            f"{options.out}: is a complete archive already; give a new folder, or run: featuremaps "
            f"compare {both}"
        )
    result = steps.reproduce(
        options.path, extraction, rtol=options.rtol, atol=options.atol, allowed=allowed
    )
    confirm(options.out / schema.COMPLETE)
    for line in result.pop("changed"):
        sys.stdout.write(f"changed since: {line}\n")
    sys.stdout.write(describe(result))
    return 0 if result["equal"] else 1
