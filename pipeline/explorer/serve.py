"""Server of the explorer, for the command line and for notebooks."""

import os
import secrets
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import uvicorn

from pipeline.archive.format import schema
from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ConfigError, reraised
from pipeline.common.places import Place, place
from pipeline.common.several import several
from pipeline.explorer.app import make_app
from pipeline.explorer.collection import Collection
from pipeline.explorer.middleware import AuthMiddleware


class Server:
    """HTTP server over archives, bound to a port when it is created.

    Attributes:
        collection: the archives.
        port: bound port.
        url: address of the first page, with the token.
    """

    def __init__(
        self, paths: Sequence[Place], *, port: int, host: str = "127.0.0.1",
        framed: bool = False, allowed: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if not 0 <= port < 2**16:
            raise ConfigError(f"serve: --port must be between 0 and 65535, got {port}")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        hint = "; use --port 0 for any free port, or another --host"
        with ExitStack() as opened:
            archives = [opened.enter_context(Archive.open(path)) for path in paths]
            self.collection = Collection(archives)
            # asyncio sets TCP_NODELAY only on a socket with its protocol (else 40 ms per response)
            self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            opened.enter_context(self._socket)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with reraised(f"serve: {host}:{port}", of=OSError, hint=hint):
                self._socket.bind((host, port))
                self._socket.listen(128)  # early clients wait in the backlog
            self._opened = opened.pop_all()
        self.port = int(self._socket.getsockname()[1])
        everywhere = host not in ("127.0.0.1", "::1", "localhost")
        token = secrets.token_urlsafe(18)
        names = {socket.gethostname(), socket.getfqdn()} if everywhere else ()
        app = AuthMiddleware(
            make_app(self.collection), token, self.port, names=names, allowed=allowed,
            any_address=everywhere, framed=framed,
        )  # fmt: skip
        host_name = socket.gethostname() if host in ("0.0.0.0", "::") else host
        host_name = f"[{host_name}]" if ":" in host_name else host_name
        keys = list(self.collection.archive_views)
        page = f"a/{quote(keys[0])}" if len(keys) == 1 else ""
        self.url = f"http://{host_name}:{self.port}/{page}?token={token}"
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=1,
            server_header=False, date_header=False, proxy_headers=False, ws="none",
            limit_concurrency=512,
        )  # fmt: skip
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Serve until Ctrl-C or `stop`."""
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:
            pass  # uvicorn shut down cleanly and raises again
        finally:
            self.close()

    def start(self) -> threading.Thread:
        """Serve from a background thread; return when the server is ready."""
        thread = threading.Thread(target=self.run, name="explorer", daemon=True)
        thread.start()
        while thread.is_alive() and not self._server.started:
            time.sleep(0.01)
        return thread

    def stop(self) -> None:
        """Stop a server that `start` started."""
        self._server.should_exit = True

    def close(self) -> None:
        """Close the port and the archives."""
        self._opened.close()


def browse(url: str) -> None:
    """Open a browser, if there is a desktop."""
    desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform != "linux" or desktop:
        threading.Timer(0.5, webbrowser.open, (url,)).start()


class Explorer:
    """Notebook view of a server: a frame with the pages, and their address."""

    def __init__(self, paths: Sequence[Place], port: int = 0, height: int = 720) -> None:
        self._server = Server(paths, port=port, framed=True)
        self._server.start()
        self.url = self._server.url.replace("127.0.0.1", "localhost")
        self._height = height

    def stop(self) -> None:
        """Stop the server."""
        self._server.stop()

    def __repr__(self) -> str:
        return f"Explorer({self.url!r})"

    def _repr_html_(self) -> str:
        port = self._server.port
        return (
            f'<iframe src="{self.url}" width="100%" height="{self._height}" '
            'style="border: 1px solid #ccc"></iframe>'
            f'<p>Open in a new tab: <a href="{self.url}" target="_blank">{self.url}</a><br>'
            f"On a remote Jupyter, first run: <code>ssh -L {port}:127.0.0.1:{port} HOST</code></p>"
        )


def explore(archives: Any, *, port: int = 0, height: int = 720) -> Explorer:
    """Start a server over archives and return its notebook view: a page per sample and unit.

    Args:
        archives: one or several paths or open archives (opened a second time).
        port: port of the server; 0 selects a free one.
        height: height of the frame in pixels.

    Raises:
        ConfigError: when a package is not installed or the port is not available.
        ArchiveError: when a path is not an archive or is damaged.
    """
    folders = [
        item.path if isinstance(item, Archive) else place(item) for item in several(archives)
    ]
    paths = [path for folder in folders for path in schema.archives_of(folder)]
    return Explorer(paths, port=port, height=height)
