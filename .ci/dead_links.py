"""Exit with an error if a page of a site has a dead link: a file or an anchor that does not exist.

Links to other hosts are not followed.
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses and ids of a tag."""
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.add(value or "")
            elif name == "id":
                self.anchors.add(value or "")


page = cache(Page)


def dead_links(site: Path) -> list[str]:
    """Return `page: link` for every dead link of the site."""
    dead = []
    for path in sorted(set(site.rglob("*.html")) - set((site / "_static").rglob("*"))):
        for link in sorted(page(path).links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            alive = target.is_file()
            if alive and parts.fragment and target.suffix == ".html":
                alive = unquote(parts.fragment) in page(target).anchors
            if not alive:
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


if __name__ == "__main__":
    if dead := dead_links(Path(sys.argv[1]).resolve()):
        sys.exit("dead links:\n" + "\n".join(dead[:50]))
