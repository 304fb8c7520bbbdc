"""Static assets and Jinja templates of the gallery: data is escaped, links are quoted."""

import re
import shlex
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from pipeline.common.atomic_files import write_bytes
from pipeline.common.errors import plural
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.rendering.attention_maps import CAVEAT, is_attention

_SEPARATORS = re.compile(r"(?<=[._/\\-])(?=[^._/\\-])")
STATIC = ("style.css", "gallery.js", "icon.svg")


def asset(name: str) -> str:
    """Return the text of a packaged file."""
    return (resources.files("pipeline.gallery") / name).read_text(encoding="utf-8")


def write_static(folder: Path) -> None:
    """Write the static assets of the pages."""
    for name in STATIC:
        write_bytes(folder / name, asset(f"static/{name}").encode(), durable=False)


def templates() -> jinja2.Environment:
    """Return a Jinja environment with the gallery's templates and filters."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: asset(f"templates/{name}")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cells = Thumbnails()
    pitch = cells.tile_size + cells.gap
    environment.globals |= {"caveat": CAVEAT, "cell": cells.tile_size, "pitch": pitch}
    environment.tests["attention"] = is_attention
    environment.filters["plural"] = plural
    environment.filters["quoted"] = repr
    environment.filters["shell"] = shlex.quote
    environment.filters["breakable"] = breakable
    environment.filters["url"] = lambda path: quote(str(path), safe="/.")
    return environment


def breakable(name: object) -> Markup:
    """Return a name with line-break opportunities after its separators.

    >>> str(breakable("a_b.<png>"))
    'a_<wbr>b.<wbr>&lt;png&gt;'
    """
    return Markup("<wbr>").join(_SEPARATORS.split(str(name)))
