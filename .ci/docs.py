"""Build the API docs from the docstrings into build/docs; warnings and dead links are errors."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import sys
import warnings
from pathlib import Path
from urllib.parse import unquote

import pdoc

import pipeline

OUT = Path(__file__).resolve().parent.parent / "build" / "docs"


def main() -> None:
    """Build, then follow every relative link."""
    # Those in packages with `__all__` by name: pdoc takes only what stands there.
    found = pkgutil.walk_packages(pipeline.__path__, "pipeline.")
    modules = [module.name for module in found if not module.name.endswith("__main__")]
    for module in modules:
        importlib.import_module(module)  # libraries may warn here
    warnings.simplefilter("error")
    # A dataclass' __init__ has the annotations of the class that it inherits from; pdoc looks their
    # names up in the module of the class that inherits, and shows the text as it stands.
    inherited = r"Error parsing type annotation .* for [\w.]+\.__init__"
    warnings.filterwarnings("ignore", message=inherited)
    warnings.filterwarnings("ignore", message=".*PydanticDataclass type annotation.*")
    pdoc.render.configure(docformat="google")
    shutil.rmtree(OUT, ignore_errors=True)
    # `__all__` of the root names two packages, capture and similarity: pdoc finds those itself.
    named = [
        module
        for module in modules
        for parent in [sys.modules[module.rpartition(".")[0]]]
        if module.rpartition(".")[2] not in getattr(parent, "__all__", [module.rpartition(".")[2]])
    ]
    pdoc.pdoc("pipeline", *named, output_directory=OUT)
    pages = list(OUT.rglob("*.html"))
    dead = [f"{page.relative_to(OUT)}: {link}" for page in pages for link in dead_links(page)]
    if len(pages) < len(modules):
        sys.exit(f"{len(pages)} pages of {len(modules)} modules")
    if dead:
        sys.exit("dead links:\n" + "\n".join(dead[:20]))
    sys.stdout.write(f"{len(pages)} pages in {OUT}\n")


def dead_links(page: Path) -> list[str]:
    """Return the relative links of a page whose file is not there."""
    shown = r"<script.*?</script>|<pre>.*?</pre>"  # source code may hold addresses
    text = re.sub(shown, "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r'href="([^"#]+)(?:#[^"]*)?"', text)
    relative = {unquote(link) for link in links if not re.match(r"[a-z]+:", link)}
    return sorted(link for link in relative if not (page.parent / link).exists())


if __name__ == "__main__":
    main()
