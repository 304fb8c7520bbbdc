"""The command `serve`: an explorer over archives, in the browser."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from pipeline.archive.format import schema
from pipeline.cli.archive_commands import archive_argument
from pipeline.common.errors import ConfigError

_OUTPUTS = Path("outputs")
"""Where runs go without `hydra.run.dir`; see `conf/common.yaml`."""


def declare(commands: Any) -> None:
    """Declare the command as a subparser of argparse."""
    text = "an explorer in the browser: a page for every sample, layer, unit and position"
    parser = commands.add_parser("serve", help=text, description=text)
    parser.set_defaults(carry_out=carry_out)
    parser.add_argument(
        "archives", nargs="*", type=archive_argument, metavar="ARCHIVE",
        help="without, the newest run or sweep below outputs/",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=8642, help="0: any that is free (default 8642)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default 127.0.0.1)"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="also answer to this name, as behind a proxy; loopback names are always allowed",
    )  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="print the address only")


def _newest() -> Path:
    """Return the run or sweep below the default folder of runs that ended last."""
    ends = [*_OUTPUTS.glob(f"*/*/archive/{schema.COMPLETE}"),
            *_OUTPUTS.glob(f"*/*/archives/*/{schema.COMPLETE}"),
            *_OUTPUTS.glob(f"*/archive/{schema.COMPLETE}"), *_OUTPUTS.glob(f"*/{schema.COMPLETE}"),
            *_OUTPUTS.glob(f"*/archives/*/{schema.COMPLETE}")]  # fmt: skip
    if not ends:
        raise ConfigError(f"serve: no finished run below {_OUTPUTS}/; name an archive or its run")
    archive = max(ends, key=lambda path: path.stat().st_mtime).parent
    folder = archive.parent.parent if archive.parent.name == "archives" else archive
    sys.stderr.write(f"featuremaps: read as: featuremaps serve {shlex.quote(str(folder))}\n")
    return folder


def carry_out(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from pipeline.explorer.serve import Server, browse

    if not 0 <= options.port < 2**16:
        raise ConfigError(f"serve: --port must be within 0 and 65535, got {options.port}")
    given = options.archives or [_newest()]
    paths = [path for folder in given for path in schema.archives_of(folder)]
    server = Server(paths, host=options.host, port=options.port, allowed=options.allow_host)
    if options.host not in ("127.0.0.1", "::1", "localhost"):
        sys.stderr.write(
            "featuremaps: warning: other machines can reach this server; whoever has the address "
            "with its token sees the archives, and the connection is not encrypted\n"
        )
    sys.stdout.write(f"explorer: {server.url}\n(Ctrl-C ends it)\n")
    sys.stdout.flush()
    if not options.no_browser:
        browse(server.url)
    server.run()
    return 0
