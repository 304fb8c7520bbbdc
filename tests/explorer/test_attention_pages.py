"""Attention in the explorer: a click on the input shows where each head attends from there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect
from starlette.testclient import TestClient

from pipeline import Archive
from pipeline.explorer.app import make_app
from pipeline.explorer.collection import Collection
from pipeline.explorer.serve import Server
from pipeline.rendering.attention_maps import CAVEAT
from scripts.synthetic_archive import layer_of, write_archive
from tests.helpers.chromium import Watch, needs_chromium
from tests.helpers.random_archives import values_of

FULL = ("head", "query", "key")
KNOWN = {"grid": (3, 4), "prefix_tokens": 2, "class_token": True}
WEIGHTS = np.abs(values_of(0, 2, 14, 14))
ROW = np.abs(values_of(1, 3, 14))
LAYERS = {
    "attn@attention": layer_of(WEIGHTS, axes=FULL, **KNOWN),
    "row@attention": layer_of(ROW, axes=("channel", "token"), **KNOWN),
    "windows@attention": layer_of(np.abs(values_of(2, 2, 8, 4)), axes=FULL),
    "latents@attention": layer_of(np.abs(values_of(3, 2, 5, 14)), axes=FULL, **KNOWN),
    "maps": layer_of(values_of(4, 5, 3, 4)),
}  # fmt: skip


@pytest.fixture(scope="module")
def attended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attended") / "it"
    return write_archive(path, LAYERS, [f"{i}.png" for i in range(24)], image_shape=(3, 60, 80))


@pytest.fixture(scope="module")
def client(attended: Path) -> Iterator[TestClient]:
    with Archive.open(attended) as archive:
        app = make_app(Collection([archive]))
        with TestClient(app) as page:
            yield page


def array(client: TestClient, query: str) -> np.ndarray:
    answer = client.get(f"/a/it/data/attention.npy?{query}")
    assert answer.status_code == 200, answer.text[-300:]
    return np.load(io.BytesIO(answer.content))


def test_the_served_attention_is_the_row_of_the_clicked_patch(client: TestClient) -> None:
    of = "sample=5&layer=attn@attention"
    at = array(client, f"{of}&y=2&x=1")
    np.testing.assert_array_equal(at, WEIGHTS[5, :, 2 + 2 * 4 + 1, 2:].reshape(2, 3, 4))
    np.testing.assert_array_equal(array(client, of), WEIGHTS[5, :, 0, 2:].reshape(2, 3, 4))
    row = array(client, "sample=5&layer=row@attention")
    np.testing.assert_array_equal(row, ROW[5, :, 2:].reshape(3, 3, 4))


def test_a_click_on_the_input_chooses_the_patch(client: TestClient) -> None:
    page = client.get("/a/it/at/5/attn@attention?125,300").text  # of 448 by 336 pixels
    assert "<h1>attn@attention from row 2, column 1</h1>" in page
    assert 'width="448" height="336"' in page
    assert CAVEAT in page
    photo = client.get("/a/it/draw/photo.png?sample=5&side=448")
    assert Image.open(io.BytesIO(photo.content)).size == (448, 336)
    pixel = client.get("/a/it/at/5/attn@attention?447,335").text
    assert "from row 2, column 3</h1>" in pixel
    assert "/at/000005-5/attn%40attention" in client.get("/a/it/sample/5").text


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("draw/attention.png?sample=5&layer=maps", ""),
        ("data/attention.npy?sample=5&layer=maps", "maps holds no attention weights"),
        ("data/attention.npy?sample=5&layer=windows@attention", "grid is not known"),
        ("data/attention.npy?sample=5&layer=row@attention&y=1&x=1", "one row per head"),
        ("data/attention.npy?sample=5&layer=latents@attention&y=1&x=1", "not the tokens of"),
        ("data/attention.npy?sample=5&layer=attn@attention&y=3&x=1", "3 rows and 4 columns"),
        ("at/5/windows@attention", "no spatial positions"),
        ("at/5/latents@attention", "no spatial positions"),
        ("nearest?sample=5&layer=attn@attention&y=0&x=0", "no positions"),
    ],
)
def test_what_attention_cannot_show_is_not_found(
    client: TestClient, path: str, reason: str
) -> None:
    answer = client.get(f"/a/it/{path}")
    assert answer.status_code == 404
    if reason:
        assert reason in answer.text


@pytest.mark.parametrize("layer", [name for name in LAYERS if "@" in name])
def test_a_head_is_a_unit(client: TestClient, layer: str) -> None:
    page = client.get(f"/a/it/layer/{layer}/unit/1").text
    assert CAVEAT in page
    assert ("the mean is the same" in page) == (layer != "row@attention")
    assert client.get(f"/a/it/draw/driven.png?layer={layer}&channel=1").status_code == 200
    for path in (f"sample/3/{layer}", "sample/3", f"layer/{layer}", f"map/{layer}"):
        assert client.get(f"/a/it/{path}").status_code == 200
    overview = client.get(f"/a/it/draw/overview.png?sample=3&layer={layer}")
    assert overview.status_code == 200


@needs_chromium
@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_a_browser_follows_the_click(browser: Browser, attended: Path, width: int) -> None:
    server = Server([attended], port=0)
    thread = server.start()
    page = browser.new_page(viewport={"width": width, "height": 900})
    watch = Watch(page, f"http://127.0.0.1:{server.port}/")
    page.goto(server.url)
    page.goto(f"http://127.0.0.1:{server.port}/a/it/at/5/attn@attention?y=0&x=0")
    image = page.locator("a.places img")
    drawn = image.evaluate("i => [i.naturalWidth, i.naturalHeight, i.width, i.height]")
    assert drawn == [448, 336, 448, 336]
    image.click(position={"x": 1.5 * 112, "y": 2.5 * 112})
    expect(page.locator("h1")).to_have_text("attn@attention from row 2, column 1")
    marker = page.locator(".marker").evaluate("m => [m.style.left, m.style.top, m.style.width]")
    assert marker == ["112px", "224px", "112px"]
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not watch.complaints
    page.close()
    server.stop()
    thread.join(120)
