"""Notebook view of a rendering: its first pictures, reduced."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipeline.common.errors import plural

if TYPE_CHECKING:
    from pipeline.rendering.render import Rendered

_SHOWN = 8
_SIDE = 480


def rendered_html(rendered: Rendered) -> str:
    """Return rendered pictures as HTML; all text from data is escaped."""
    pictures = list(_titled(rendered))
    images = "".join(
        f'<figure style="display:inline-block;margin:4px;vertical-align:top">'
        f"{_image(rendered.folder / path)}<figcaption>{escape(title)}</figcaption></figure>"
        for path, title in islice(pictures, _SHOWN)
    )
    remainder = f"<p>and {len(pictures) - _SHOWN:,} more</p>" if len(pictures) > _SHOWN else ""
    return (
        f"<p><b>{plural(len(pictures), 'picture')}</b> of "
        f"{plural(len(rendered.samples), 'sample')} · "
        f"<code>{escape(str(rendered.folder))}</code></p>{images}{remainder}"
    )


def png_image(content: bytes) -> str:
    """Return an `img` element with the embedded PNG."""
    data = base64.b64encode(content).decode("ascii")
    return f'<img style="max-width:100%" src="data:image/png;base64,{data}">'


def _titled(rendered: Rendered) -> Iterator[tuple[Path, str]]:
    for picture in rendered.of_archive:
        yield picture.path, " · ".join(filter(None, (picture.title, picture.layer)))
    for sample in rendered.samples:
        for picture in rendered.pictures(sample):
            parts = (sample.id, picture.renderer, picture.layer)
            yield picture.path, " · ".join(filter(None, parts))


def _image(path: Path) -> str:
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):  # deleted or very large
        return f"<code>{escape(str(path))}</code>"
    picture.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return png_image(content.getvalue())
