"""The gallery: complete, inert whatever names hold, and quiet in a real browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.datasets.image_folder import ImageFolder
from pipeline.extraction.extract import extract
from pipeline.gallery import pages, single_file
from pipeline.gallery.pages import THUMBNAILS, write_gallery
from pipeline.gallery.single_file import write_single_file
from pipeline.renderers.grid import Grid
from pipeline.renderers.histogram import Histogram
from pipeline.renderers.overview import Overview
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.renderers.top_samples import TopSamples
from pipeline.rendering.options import RenderOptions
from pipeline.rendering.render import render
from pipeline.rendering.renderer import Renderer
from scripts.synthetic_archive import layer_of, write_archive
from tests.conftest import photo, tiny_extraction
from tests.helpers.chromium import Watch, needs_chromium

RENDERERS: dict[str, Renderer] = {
    "grid": Grid(max_channels=4),
    "overview": Overview(),
    "top_samples": TopSamples(samples=2, count=2, tile_size=40),
    "histogram": Histogram(bins=10, dpi=60),
    THUMBNAILS: Thumbnails(),
}
EVIL = "<img src=x onerror=alert(1)>&\"'"


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery over hostile names: classes, files, one of them broken, and an alias."""
    root = tmp_path_factory.mktemp("gallery")
    folder = root / "photos" / EVIL
    folder.mkdir(parents=True)
    for i in range(3):
        long = "x" * 60 * i
        Image.fromarray(photo(i)).save(folder / f"{i} {EVIL}{long}.png")
    (folder / "broken ☃ %2e%2e.png").write_bytes(b"nothing")
    config = tiny_extraction(
        root / "archive",
        dataset=ImageFolder(root=str(root / "photos")),
        layers=LayerSelector(include=("conv1", "relu", "fc"), aliases={"conv1": EVIL}),
        on_error="skip",
    )
    extract(config)
    with Archive.open(root / "archive") as archive:
        rendered = render(archive, root / "out", RENDERERS)
        write_single_file(archive, rendered)
        return write_gallery(archive, rendered)


class Links(HTMLParser):
    """Collects every address that a page refers to, and every tag."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "script":
            self.scripts.append(dict(attrs).get("src") or "inline")
        for name, value in attrs:
            if name in ("href", "src"):
                self.addresses.append(value or "")
            if name.startswith("on") or name == "style":
                self.handlers.append(name)


def html_pages(gallery: Path) -> list[Path]:
    """Return the pages in the gallery's folder, not the one that holds everything."""
    return sorted(gallery.parent.rglob("*.html"))


def test_every_link_leads_to_a_file_of_the_run(gallery: Path) -> None:
    run = gallery.parent.parent.resolve()
    assert len(html_pages(gallery)) == 4 + 4 + 2  # samples, layers, table and configuration
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
        assert found.scripts == ["../gallery.js" if page.parent != gallery.parent else "gallery.js"]
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


def test_layers_and_samples_have_their_figures(gallery: Path) -> None:
    with Archive.open(gallery.parent.parent.parent / "archive") as archive:
        statistics = archive.layers["conv1"].statistics
        largest = archive.layers["conv1"].sample_max[0]
    page = next(
        page for page in (gallery.parent / "layers").glob("*.html")
        if "top samples" in page.read_text(encoding="utf-8")
    )  # fmt: skip
    text = page.read_text(encoding="utf-8")
    assert "distribution of" in text
    assert f"<td>{statistics['mean'][0]:.4g}</td>" in text
    (sample,) = (gallery.parent / "samples").glob("000000-*.html")
    assert f"<td>{largest.max():.4g}</td>" in sample.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(gallery: Path) -> Iterator[str]:
    """The run's folder over HTTP, on a free port of this machine."""
    folder = str(gallery.parent.parent)

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=folder)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.slow
@needs_chromium
def test_a_browser_shows_every_page_without_complaint(
    gallery: Path, browser: Browser, tmp_path: Path
) -> None:
    root = gallery.parent.parent.as_uri()
    for number, path in enumerate(html_pages(gallery)):
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        watch = Watch(page, root)
        page.goto(path.as_uri())
        shot = tmp_path / f"{number}.png"
        page.screenshot(path=shot)
        with Image.open(shot) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 50
        page.close()
        assert not watch.complaints


@needs_chromium
@pytest.mark.parametrize("how", ["file", "http"])
def test_search_filter_lightbox_and_keys(
    gallery: Path, browser: Browser, served: str, how: str
) -> None:
    root = served if how == "http" else gallery.parent.parent.as_uri() + "/"
    page = browser.new_page()
    watch = Watch(page, root)
    page.goto(root + "gallery/index.html")
    page.keyboard.press("/")
    page.keyboard.type("1 <IMG")
    expect(page.locator(".found li")).to_have_count(1)
    assert EVIL in page.locator(".found a").inner_text()
    expect(page.locator("tbody").first).to_be_hidden()
    page.fill(".find input", "no such id")
    expect(page.locator(".find output")).to_have_text("0 of 4")
    page.fill(".find input", "")
    expect(page.locator("tbody").first).to_be_visible()
    page.select_option(".find select", EVIL)
    expect(page.locator(".found li")).to_have_count(4)
    page.locator(".found a").first.click()
    expect(page.locator("h1")).to_contain_text("0 ")
    page.wait_for_load_state()
    page.keyboard.press("ArrowRight")
    expect(page.locator("h1")).to_contain_text("1 ")
    page.wait_for_load_state()  # the heading is there before the script that listens to keys
    page.keyboard.press("p")
    expect(page.locator("h1")).to_contain_text("0 ")
    page.wait_for_load_state()
    first = page.locator("a.zoom").first
    first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("dialog[open] img")).to_be_visible()
    before = page.locator("dialog img").get_attribute("src")
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog img").get_attribute("src") != before
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.close()
    assert not watch.complaints


@pytest.mark.slow
@needs_chromium
def test_pages_are_turned_by_click_and_by_key(
    opened: Archive, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAGE_SIZE", 3)
    index = write_gallery(opened, render(opened, tmp_path, {THUMBNAILS: Thumbnails()}))
    page = browser.new_page()
    watch = Watch(page, tmp_path.as_uri())
    page.goto(index.as_uri())
    expect(page.locator("tbody tr")).to_have_count(3)
    page.get_by_role("link", name="next").first.click()
    expect(page.locator("nav.paging span").first).to_have_text("page 2 of 3")
    page.keyboard.press("n")
    expect(page.locator("nav.paging span").first).to_have_text("page 3 of 3")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("tbody .who a").click()
    expect(page.locator("h1")).to_have_text(opened.samples[6].id)
    page.get_by_role("link", name="all samples").click()
    expect(page.locator("nav.paging span").first).to_have_text("page 3 of 3")
    page.keyboard.press("p")
    expect(page.locator("nav.paging span").first).to_have_text("page 2 of 3")
    page.close()
    assert not watch.complaints


@needs_chromium
def test_one_file_holds_the_whole_gallery(gallery: Path, browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "sent by mail.html"
    shutil.copy(gallery.parent.parent / "gallery.html", path)
    found = Links(path)
    assert not found.handlers
    assert all(address.startswith(("#", "data:image/")) for address in found.addresses)
    text = path.read_text(encoding="utf-8")
    assert "onerror=alert(1)>" not in text
    assert "skipped: not an image" in text
    page = browser.new_page(viewport={"width": 390, "height": 800})
    watch = Watch(page, "data:image/")
    page.goto(path.as_uri())
    assert watch.complaints == [path.as_uri()]  # the page itself and nothing else
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shown = page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert shown
    page.locator("a.zoom").first.click()
    expect(page.locator("dialog[open] img")).to_be_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    assert page.locator("#sample-1-layer-2").count() == 1
    areas = page.locator("map[name='map-sample-1'] area")
    assert [area.get_attribute("href") for area in areas.all()] == [
        "#sample-1", *(f"#sample-1-layer-{number}" for number in range(1, 5)),
    ]  # fmt: skip
    for link in {a for a in found.addresses if a.startswith("#")}:
        assert f'id="{link[1:]}"' in text, link
    page.fill(".find input", "1 <IMG")
    expect(page.locator(".find output")).to_have_text("1 of 4")
    expect(page.locator("#sample-1")).to_be_visible()
    expect(page.locator("#sample-0")).to_be_hidden()
    page.close()
    assert watch.complaints == [path.as_uri()]


@pytest.mark.slow
def test_pictures_are_made_to_fit_one_file(
    opened: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = render(opened, tmp_path, {"grid": Grid(tile_size=224), THUMBNAILS: Thumbnails()})
    sizes = [
        sum((tmp_path / p.path).stat().st_size for p in rendered.pictures(sample))
        for sample in rendered.samples
    ]
    largest = min(sizes) // 2
    monkeypatch.setattr(single_file, "OF_SAMPLE", largest)
    text = write_single_file(opened, rendered).read_text(encoding="utf-8")
    assert "Pictures are reduced" in text
    pictures = [base64.b64decode(part) for part in re.findall(r"image/webp;base64,([^\"]+)", text)]
    assert len(pictures) == len(rendered.samples) * (len(opened.layers) + 1)
    assert sum(map(len, pictures)) <= largest * len(rendered.samples)
    for content in pictures:
        with Image.open(io.BytesIO(content)) as picture:
            assert min(picture.size) > 10


def test_filters_are_there_only_where_labels_are(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(photo(0)).save(folder / "IMG_2024-01_kitchen.png")
    extract(tiny_extraction(tmp_path / "archive", dataset=FlatFolder(root=str(folder))))
    with Archive.open(tmp_path / "archive") as archive:
        rendered = render(archive, tmp_path / "out", {THUMBNAILS: Thumbnails()})
        for page in (write_gallery(archive, rendered), write_single_file(archive, rendered)):
            text = page.read_text(encoding="utf-8")
            assert "<select" not in text
            assert "IMG_<wbr>2024-<wbr>01_<wbr>kitchen.<wbr>png" in text


@pytest.mark.parametrize(("words", "said"), [(("0:4",), "4 of 60"), (("all",), "60")])
def test_the_gallery_says_how_many_of_the_samples_it_shows(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).random((60, 3), np.float32)
    path = write_archive(tmp_path / "a", {"fc": layer_of(values)}, [f"s{i}" for i in range(60)])
    with Archive.open(path) as archive:
        options = RenderOptions(samples=words, num_workers=0)
        rendered = render(archive, tmp_path / "out", {THUMBNAILS: Thumbnails()}, options)
        for page in (write_gallery(archive, rendered), write_single_file(archive, rendered)):
            text = page.read_text(encoding="utf-8")
            assert f"<title>synthetic · {said} samples</title>" in text
            assert f"<p>{said} samples × 1 layer " in text


def test_too_many_pictures_for_one_file_are_refused(
    opened: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_file, "LARGEST", 1000)
    rendered = render(opened, tmp_path, {THUMBNAILS: Thumbnails()})
    with pytest.raises(ConfigError, match=r"render\.single_file: the pictures take .* kB"):
        write_single_file(opened, rendered)


@pytest.mark.slow
@needs_chromium
def test_dark_and_narrow_screens(gallery: Path, browser: Browser) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        context = browser.new_context(
            color_scheme=scheme,  # type: ignore[arg-type]
            viewport={"width": 390, "height": 800},
        )
        page = context.new_page()
        for path in html_pages(gallery):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert len(papers) == 2
