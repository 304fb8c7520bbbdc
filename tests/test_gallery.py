"""The gallery: complete, inert whatever names hold, and quiet in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from pipeline.archive.reader import Archive
from pipeline.datasets.image_folder import ImageFolder
from pipeline.execution import OnError
from pipeline.extract import extract
from pipeline.gallery import pages
from pipeline.gallery.pages import THUMBNAILS, write_gallery
from pipeline.layers import LayerSelector
from pipeline.render import render
from pipeline.renderers.base import Renderer
from pipeline.renderers.grid import Grid
from pipeline.renderers.overview import Overview
from pipeline.renderers.thumbnails import Thumbnails
from tests.conftest import photo, tiny_extraction

RENDERERS: dict[str, Renderer] = {
    "grid": Grid(maps=4),
    "overview": Overview(),
    THUMBNAILS: Thumbnails(),
}
EVIL = "<img src=x onerror=alert(1)>&\"'"
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery over hostile names: classes, files, one of them broken, and an alias."""
    root = tmp_path_factory.mktemp("gallery")
    folder = root / "photos" / EVIL
    folder.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(photo(i)).save(folder / f"{i} {EVIL}.png")
    (folder / "broken ☃ %2e%2e.png").write_bytes(b"nothing")
    config = tiny_extraction(
        root / "archive",
        dataset=ImageFolder(root=str(root / "photos")),
        layers=LayerSelector(include=("conv1", "relu", "fc"), aliases={"conv1": EVIL}),
        on_error=OnError.SKIP,
    )
    extract(config)
    with Archive.open(root / "archive") as archive:
        rendered = render(archive, root / "out", RENDERERS)
        return write_gallery(archive, rendered)


class Links(HTMLParser):
    """Collects every address that a page refers to, and every tag."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src"):
                self.addresses.append(value or "")
            if name.startswith("on") or name == "style":
                self.handlers.append(name)


def html_pages(gallery: Path) -> list[Path]:
    return sorted(gallery.parent.rglob("*.html"))


def test_every_link_leads_to_a_file_of_the_run(gallery: Path) -> None:
    run = gallery.parent.parent.resolve()
    assert len(html_pages(gallery)) == 4 + 2
    for page in html_pages(gallery):
        for address in Links(page).addresses:
            path, _, fragment = address.partition("#")
            target = (page.parent / unquote(path)).resolve() if path else page
            assert target.is_file(), address
            assert target.is_relative_to(run)
            if fragment:
                assert f'id="{fragment}"' in target.read_text(encoding="utf-8")


def test_hostile_names_are_inert(gallery: Path) -> None:
    for page in html_pages(gallery):
        found = Links(page)
        assert not found.handlers
        assert "script" not in found.tags
        assert "onerror=alert(1)>" not in page.read_text(encoding="utf-8")
    names = [path.name for path in gallery.parent.parent.rglob("*") if path.is_file()]
    assert all(name.isascii() and "<" not in name for name in names)
    index = gallery.read_text(encoding="utf-8")
    assert "&lt;img src=x onerror=alert(1)&gt;" in index


def test_skipped_samples_are_shown_as_such(gallery: Path) -> None:
    assert "1 skipped" in gallery.read_text(encoding="utf-8")
    (page,) = (gallery.parent / "samples").glob("000003-*.html")
    assert "skipped: not an image" in page.read_text(encoding="utf-8")


def test_many_samples_are_paged(
    opened: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAGE_SIZE", 3)
    write_gallery(opened, render(opened, tmp_path, {THUMBNAILS: Thumbnails()}))
    names = ["index.html", "index-2.html", "index-3.html"]
    for name, rows in zip(names, (3, 3, 1), strict=True):
        text = (tmp_path / "gallery" / name).read_text(encoding="utf-8")
        assert text.count('loading="lazy"') == rows
        assert "of 3" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; .ci/run installs it")
def test_a_browser_shows_every_page_without_complaint(gallery: Path, tmp_path: Path) -> None:
    for number, page in enumerate(html_pages(gallery)):
        shot = tmp_path / f"{number}.png"
        done = subprocess.run(
            [
                str(CHROMIUM),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--enable-logging=stderr",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--window-size=1200,900",
                f"--screenshot={shot}",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not complaints
        with Image.open(shot) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 50
