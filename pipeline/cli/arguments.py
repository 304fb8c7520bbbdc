"""Parts that the parsers and outputs of several commands share."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.archive.format import schema
from pipeline.common.errors import ConfigError
from pipeline.common.object_path import ObjectPath
from pipeline.common.places import Place, place, refuse_secrets, refuse_url, with_options

Options = argparse.Namespace


def add_command(
    commands: Any, name: str, carry_out: Callable[[Options], int], *paths: str,
    as_json: bool = False, archives: bool = True,
) -> argparse.ArgumentParser:  # fmt: skip
    """Add the subparser of a command; its help is the first sentence of the function's docstring.

    `paths` are positional arguments: archives, and the output `out`. Commands on `archives` take
    options of object stores.
    """
    text = " ".join((carry_out.__doc__ or "").partition(".\n")[0].removesuffix(".").split())
    text = text[:1].lower() + text[1:]
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(carry_out=carry_out)
    for path in paths:
        archive = path != "out"
        parser.add_argument(
            path, type=archive_argument if archive else Path,
            help="an archive, its run folder or its URL" if archive else "file or folder to write",
        )  # fmt: skip
    if archives:
        parser.add_argument(
            "--storage-option", dest="storage_options", action="append", default=[],
            type=_storage_option, metavar="KEY=VALUE",
            help="option of the object store, e.g. aws_region=eu-west-1; may be repeated",
        )  # fmt: skip
    if as_json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def archive_argument(word: str) -> Place:
    """Return the archive folder for `PATH` or `archive=PATH`, an archive, its run folder or URL."""
    path = Path(word)
    existing = word and path.exists()
    path_or_url = path if existing else place_argument(word.removeprefix("archive="))
    return schema.archive_folder(path_or_url)


def place_argument(word: str) -> Place:
    """Return a local path or the place of a URL."""
    if not word:  # e.g. an unset variable; `Path` makes it the current folder
        raise argparse.ArgumentTypeError("the path is empty; use . for the current folder")
    try:
        return place(word)
    except ConfigError as error:  # argparse replaces the text of a ValueError
        raise argparse.ArgumentTypeError(str(error)) from None


def _storage_option(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    try:
        refuse_secrets(word)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{word!r}: expected KEY=VALUE")
    return key, value


def with_places(options: Options) -> Options:
    """Return parsed arguments; URLs get the options of the store, or are refused as local paths."""
    store_options = dict(getattr(options, "storage_options", ()))
    urls = 0

    def completed(value: Any) -> Any:
        nonlocal urls
        if isinstance(value, list):
            return [completed(item) for item in value]
        if isinstance(value, Path):
            refuse_url(value)
        urls += isinstance(value, ObjectPath)
        return with_options(value, store_options)

    places = Options(**{name: completed(value) for name, value in vars(options).items()})
    if store_options and not urls:
        raise ConfigError("--storage-option: has no effect on local paths; remove it")
    return places


def say_results(results: Sequence[Any], text: str, options: Options) -> None:
    """Print the results of one archive or several as text, or as JSON, a list of several."""
    if options.json:
        content = results if len(results) > 1 else results[0]
        text = json.dumps(content, indent=1) + "\n"
    sys.stdout.write(text)


def archives_into(out: Path, path: Place) -> list[tuple[Place, str]]:
    """Return (archive, name) pairs, for a single archive without a name; make a sweep's folder."""
    archives = schema.archives_of(path)
    if archives == [path]:
        return [(path, "")]
    if out.exists():
        raise ConfigError(f"{out}: already exists; give a new folder for the archives of the sweep")
    out.mkdir(parents=True)
    return [(archive, schema.name_of(archive)) for archive in archives]
