"""The explorer in a real browser, as a command and in a notebook."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from pipeline import Archive, explore
from pipeline.cli.main import main
from pipeline.common.errors import ConfigError
from pipeline.explorer.serve import Server
from tests.conftest import REPOSITORY
from tests.helpers.chromium import Watch, needs_chromium
from tests.helpers.processes import start_background


@pytest.fixture(scope="module")
def server(tiny_archive: Path) -> Iterator[Server]:
    found = Server([tiny_archive], port=0)
    thread = found.start()
    yield found
    found.stop()
    thread.join(120)
    assert not thread.is_alive()


@pytest.fixture(
    params=[(1280, "light"), pytest.param((390, "dark"), marks=pytest.mark.slow)],
    ids=["wide", "phone"],
)
def page(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Page]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found = context.new_page()
    watch = Watch(found, f"http://127.0.0.1:{server.port}/")
    found.goto(server.url)
    yield found
    assert not watch.complaints
    context.close()


def home(server: Server, path: str = "") -> str:
    key = next(iter(server.collection.archive_views))
    return f"http://127.0.0.1:{server.port}/a/{key}{path}"


@needs_chromium
@pytest.mark.parametrize(
    "path",
    ["", "/sample/2", "/layer/conv2/unit/3", "/at/2/conv1?y=3&x=4", "/map/conv2"]
    + [pytest.param(path, marks=pytest.mark.slow) for path in
       ("?q=0003", "/sample/2/conv1", "/layer/conv2", "/layer/fc/unit/1", "/sample/2/fc")],
)  # fmt: skip
def test_every_page_is_whole_and_quiet(page: Page, server: Server, path: str) -> None:
    page.goto(home(server, path))
    if path.startswith(("/at/", "/map/")):  # their scripts fetch
        page.wait_for_load_state("networkidle")
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete", arg=image.element_handle())
        assert image.evaluate("image => image.naturalWidth") > 0
    width = page.viewport_size["width"] if page.viewport_size else 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for image in page.locator("img[width]").all():  # maps over pictures must fit them
        drawn = image.evaluate("i => [i.naturalWidth, i.naturalHeight, i.width, i.height]")
        assert drawn[:2] == drawn[2:]


@needs_chromium
def test_keys_lead_from_unit_to_unit(page: Page, server: Server) -> None:
    page.goto(home(server, "/layer/conv2/unit/3"))
    page.keyboard.press("ArrowRight")
    expect(page.locator("h1")).to_have_text("conv2 · unit 4")
    page.keyboard.press("p")
    expect(page.locator("h1")).to_have_text("conv2 · unit 3")
    page.locator("select[name=by]").select_option("mean")
    page.get_by_role("button", name="show").click()
    assert "by=mean" in page.url


@needs_chromium
def test_a_click_in_a_map_chooses_the_position(page: Page, server: Server) -> None:
    page.goto(home(server, "/at/2/conv1?y=0&x=0"))
    image = page.locator("a.places img")
    box = image.bounding_box()
    assert box is not None
    height, width = (int(page.locator("a.places").get_attribute(f"data-{k}") or 0)
                     for k in ("height", "width"))  # fmt: skip
    shown = image.evaluate("i => [i.height, i.width]")
    image.click(position={"x": 2.5 * shown[1] / width, "y": 3.5 * shown[0] / height})
    expect(page.locator("h1")).to_have_text("conv1 at row 3, column 2")
    marker = page.locator(".marker")
    assert marker.evaluate("m => parseFloat(m.style.left)") == pytest.approx(
        2 * shown[1] / width, abs=1
    )
    expect(page.locator(".nearest li")).to_have_count(7)
    expect(page.locator(".nearest [role=status]")).to_have_text("7 samples searched")


@needs_chromium
def test_the_maps_selection_becomes_ids(page: Page, server: Server) -> None:
    page.goto(home(server, "/map/conv2"))
    canvas = page.locator("canvas[data-points='7']")
    expect(canvas).to_be_visible()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] - 3, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    expect(page.locator(".dataset output")).to_have_text("7 samples")
    text = page.locator(".dataset textarea").input_value()
    ids = [sample.id for sample in next(iter(server.collection.archive_views.values())).samples]
    assert text.startswith("'render.samples=[")
    assert all(f'"{id_}"' in text for id_ in ids)


@pytest.mark.slow
def test_the_command_prints_one_address_and_ctrl_c_ends_it(tiny_archive: Path) -> None:
    environment = dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)}
    process = start_background(
        "serve", str(tiny_archive), "--port", "0", "--no-browser", env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    url = re.fullmatch(r"explorer: (http://127\.0\.0\.1:\d+/a/\w+\?token=\S+)\n", line)
    assert url, line
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    assert b"<h1>tiny</h1>" in opener.open(url[1]).read()  # of one archive, its page
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")


@pytest.mark.slow
def test_it_imports_no_torch(tiny_archive: Path) -> None:
    program = (
        "import sys; from pipeline.explorer.serve import Server\n"
        f"Server(['{tiny_archive}'], port=0).close(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_what_cannot_be_served_is_said(
    tiny_archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], server: Server
) -> None:
    assert main(("serve", str(tmp_path / "nosuch"))) == 1
    assert "nosuch: no such folder" in capfd.readouterr().err
    assert main(("serve", str(tiny_archive), "--port", str(server.port), "--no-browser")) == 2
    assert "use --port 0 for any free port" in capfd.readouterr().err
    assert main(("serve", str(tiny_archive), "--port", "70000")) == 2
    assert "--port must be between 0 and 65535" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="between 0 and 65535, got 70000"):
        explore(tiny_archive, port=70000)


def test_a_notebook_shows_it_in_a_frame(tiny_archive: Path) -> None:
    with Archive.open(tiny_archive) as archive:
        explorer = explore(archive)
    html = explorer._repr_html_()
    assert f'<iframe src="{explorer.url}"' in html
    assert "ssh -L " in html
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    answer = opener.open(explorer.url)
    assert b"<h1>tiny</h1>" in answer.read()
    assert "frame-ancestors 'self' http://localhost:*" in answer.headers["content-security-policy"]
    explorer.stop()
