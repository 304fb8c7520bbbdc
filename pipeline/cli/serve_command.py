"""The command `serve`: explore archives in the browser."""

import shlex
import sys
from pathlib import Path
from typing import Any

from pipeline.archive.format import schema
from pipeline.cli.arguments import Options, add_command, archive_argument
from pipeline.common.errors import ConfigError

_OUTPUTS = Path("outputs")
"""Default folder of runs; see `conf/common.yaml`."""


def declare(commands: Any) -> None:
    """Add the subparser."""
    parser = add_command(commands, "serve", carry_out)
    parser.add_argument(
        "archives", nargs="*", type=archive_argument, metavar="ARCHIVE",
        help="default: the newest run or sweep below outputs/",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=int, default=8642, help="0 selects a free port (default 8642)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 accepts other machines (default 127.0.0.1)"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="accept this host name too, e.g. of a proxy; loopback names are always allowed",
    )  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def _newest() -> Path:
    """Return the run or sweep in `outputs` that finished last."""
    patterns = ("*", "*/archive", "*/archives/*", "*/*/archive", "*/*/archives/*")
    ends = [end for pattern in patterns for end in _OUTPUTS.glob(f"{pattern}/{schema.COMPLETE}")]
    if not ends:
        raise ConfigError(
            f"serve: no finished run below {_OUTPUTS}/; give an archive or its run folder"
        )
    archive = max(ends, key=lambda path: path.stat().st_mtime).parent
    folder = archive.parent.parent if archive.parent.name == "archives" else archive
    sys.stderr.write(f"featuremaps: interpreted as: featuremaps serve {shlex.quote(str(folder))}\n")
    return folder


def carry_out(options: Options) -> int:
    """Explore archives in the browser: a page for every sample, layer, unit and position."""
    from pipeline.explorer.serve import Server, browse

    folders = options.archives or [_newest()]
    paths = [path for folder in folders for path in schema.archives_of(folder)]
    server = Server(paths, host=options.host, port=options.port, allowed=options.allow_host)
    if options.host not in ("127.0.0.1", "::1", "localhost"):
        sys.stderr.write(
            "featuremaps: warning: other machines can reach this server, and connections are not "
            "encrypted; share the address with its token only with people who may see the archive\n"
        )
    sys.stdout.write(f"explorer: {server.url}\n(press Ctrl-C to stop)\n")
    sys.stdout.flush()
    if not options.no_browser:
        browse(server.url)
    server.run()
    return 0
