"""The whole gallery as one HTML file, pictures inside: to mail, to attach, to open anywhere.

Its content security policy lets run only the script and the style that it brings along, known by
their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from pipeline.archive.reader import Archive
from pipeline.foundation.atomic_files import write_bytes
from pipeline.foundation.errors import ConfigError
from pipeline.foundation.progress import size
from pipeline.gallery.pages import Pages, label_of
from pipeline.gallery.templating import asset
from pipeline.rendering.options import THUMBNAILS
from pipeline.rendering.render import Rendered

LARGEST = 200 * 1024**2
"""Bytes of pictures that one file takes at most: browsers become slow beyond."""

_MEDIA = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "svg": "image/svg+xml"}


def write_single_file(archive: Archive, rendered: Rendered) -> Path:
    """Write `gallery.html` beside the gallery's folder and return it.

    Raises:
        ConfigError: when the pictures are too large for one file.
    """
    total = sum((rendered.folder / path).stat().st_size for path in _paths(rendered))
    if total > LARGEST:
        raise ConfigError(
            f"render.single_file: the pictures take {size(total)}, one file holds at most "
            f"{size(LARGEST)}; choose fewer with render.samples, or smaller ones; the gallery in "
            "its folder is complete"
        )
    path = rendered.folder / "gallery.html"
    write_bytes(path, _SingleFile(archive, rendered).html().encode("utf-8"), durable=False)
    return path


def _paths(rendered: Rendered) -> Iterator[Path]:
    for sample in rendered.samples:
        yield from (picture.path for picture in rendered.pictures(sample))
    yield from (picture.path for picture in rendered.of_archive)


class _SingleFile(Pages):
    """All pages as one."""

    def __init__(self, archive: Archive, rendered: Rendered) -> None:
        super().__init__(archive, rendered, rendered.folder)
        self._environment.filters["data"] = self._data

    def html(self) -> str:
        """Return the file's text."""
        rows = []
        for sample in self._rendered.samples:
            pictures = self._rendered.pictures(sample)
            rows.append(
                {
                    "sample": sample,
                    "label": label_of(sample),
                    "strip": next((p.path for p in pictures if p.renderer == THUMBNAILS), None),
                    "pictures": [p for p in pictures if p.renderer != THUMBNAILS],
                }
            )
        style, script = asset("static/style.css"), asset("static/gallery.js")
        icon = base64.b64encode(asset("static/icon.svg").encode()).decode()
        return self._environment.get_template("single.html").render(
            rows=rows,
            parts=[self.layer_values(layer) for layer in self._layers],
            style=Markup(style),
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            icon=f"data:image/svg+xml;base64,{icon}",
            **self.configuration_values(),
        )

    def _data(self, path: Path) -> str:
        """Return a picture as a `data:` address."""
        content = base64.b64encode((self._folder / path).read_bytes()).decode()
        return f"data:{_MEDIA[path.suffix[1:]]};base64,{content}"


def _hash(text: str) -> str:
    """Return what a content security policy calls an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
