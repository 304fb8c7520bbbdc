"""Sphinx configuration of the documentation site; `.ci/site` builds it into build/site."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent.parent
sys.path.insert(0, str(DOCS))

import generated  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

from pipeline import __version__ as release  # noqa: E402

project = "featuremaps"
author = "The featuremaps developers"
copyright = author
version = release
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["notebooks"]
html_context = {"default_mode": "auto"}
html_favicon = "_static/logo.svg"
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
# R and MATLAB are highlighted by Pygments, and nothing else is guessed.
highlight_language = "none"
copybutton_exclude = ".linenos, .gp, .go"

default_role = "code"  # docstrings have single backticks
autoclass_content = "both"  # parameters are documented in __init__
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = "featuremaps"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "logo": {
        "text": "featuremaps",
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
    },
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "github-light",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"tutorial": [], "index": []}

# Documents that stay beside what they describe, and their pages on the site.
PAGES = {
    "conf/README.md": "reference/configuration.md",
    "pipeline/archive/README.md": "concepts/archive.md",
    "scripts/README.md": "reference/measurements.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    ".github/CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
_ENTRY = re.compile(r"^    (\w+(?:, \w+)+): (.*\n(?:     +.*\n)*)", re.MULTILINE)
_MARK = re.compile(r"<!-- generated: (\w+) -->")


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Put in what the page shows: a document from elsewhere, or generated tables."""
    path = DOCS / f"{page}.md"
    document = next((ROOT / name for name, shown in PAGES.items() if DOCS / shown == path), path)
    text = source[0] if document == path else document.read_text(encoding="utf-8")
    app.env.note_dependency(str(document))

    def link(match: re.Match[str]) -> str:
        target = (document.parent / match[1]).resolve()
        if "://" in match[1] or not target.is_file():
            return match[0]
        shown = DOCS / PAGES.get(str(target.relative_to(ROOT)), target)
        return f"]({os.path.relpath(shown, path.parent)}{match[2] or ''})"

    text = _LINK.sub(link, text.replace("uv run featuremaps", "featuremaps"))
    source[0] = _MARK.sub(lambda match: getattr(generated, match[1])(), text)


def read_docstring(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Mark the code of examples, and the bars of magnitudes, as reStructuredText wants them, and
    give each of several attributes of one entry its own.
    """
    lines[:] = _ENTRY.sub(
        lambda entry: "".join(f"    {name}: {entry[2]}" for name in entry[1].split(", ")),
        "\n".join([*lines, ""]),
    ).splitlines()
    code = False
    for i, line in enumerate(lines):
        if code and line.strip() and not line.startswith(" "):
            code = False
        prose = line.split("`")
        prose[::2] = [part.replace("|", r"\|") for part in prose[::2]]
        lines[i] = f"    {line}" if code else "`".join(prose)
        if line == "Example:":
            code, lines[i] = True, "Example:\n    .. code-block:: python\n"
    lines[:] = "\n".join(lines).split("\n")


def setup(app: Sphinx) -> None:
    """Register what is done to pages and docstrings."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
