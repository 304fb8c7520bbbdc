# ruff: noqa: E501 - addresses
"""The explorer over HTTP: what it shows equals the archive, and nothing else is let out or in."""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from pipeline import Archive
from pipeline.cli.main import main
from pipeline.explorer.app import make_app
from pipeline.explorer.cache import LRUCache
from pipeline.explorer.collection import Collection
from pipeline.explorer.middleware import AuthMiddleware
from pipeline.explorer.positions import nearest
from pipeline.explorer.units import driven
from scripts.synthetic_archive import layer_of, write_archive
from tests.helpers.random_archives import values_of

TOKEN, PORT = "secret", 8642
HOSTILE = "<script>alert(1)</script>"
IDS = [f"img{i:02d}.png" for i in range(20)] + [
    "../../etc/passwd",
    HOSTILE,
    "ünï cöde/&?#%",
    "x" * 300,
]
LABELS = [i % 3 for i in range(24)]
NAMES = {0: "cat", 1: HOSTILE, 2: "a & b"}


MAPS, TOKENS, VECTOR = values_of(0, 6, 5, 4), values_of(1, 10, 8), values_of(2, 7)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("explored")
    layers = {
        "maps": layer_of(MAPS),
        f"odd/{HOSTILE}%": layer_of(TOKENS, prefix_tokens=1, grid=(3, 3)),
        "vector": layer_of(VECTOR),
    }
    images = np.random.default_rng(3).integers(0, 256, (24, 3, 40, 32), dtype=np.uint8)
    return [
        write_archive(
            folder / name / "archive", layers, IDS, labels=LABELS, names=NAMES, shards=3,
            images=lambda a, b: images[a:b], image_shape=(3, 40, 32), model=f"{name} {HOSTILE}",
            skipped=("img04.png",),
        )
        for name in ("one", "two")
    ]  # fmt: skip


@pytest.fixture(scope="module")
def client(archives: list[Path]) -> Iterator[TestClient]:
    opened = list(map(Archive.open, archives))
    guarded = AuthMiddleware(make_app(Collection(opened)), TOKEN, PORT)
    with TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}") as found:
        assert found.get(f"/?token={TOKEN}").status_code == 200
        yield found
    for archive in opened:
        archive.close()


PAGES = [
    "/", "/a/one", "/a/one?page=1&label=cat&q=IMG", "/a/one/sample/3", "/a/one/sample/000003-img03",
    "/a/one/sample/3/maps?order=variance&normalize=layer&colormap=magma&maps=16",
    "/a/one/sample/3/vector", "/a/one/layer/maps?order=mean", "/a/one/layer/maps/unit/5?by=mean&crop=yes",
    "/a/one/layer/vector/unit/0", "/a/one/at/3/maps?y=1&x=2", "/a/one/at/3/maps?200,100",
    "/a/one/map/maps", "/side/sample?id=img03.png", "/side/unit?layer=maps&channel=2",
    "/a/one/sample/4", "/a/one/sample/21", "/a/one/sample/20", "/a/one/sample/23",
]  # fmt: skip


@pytest.fixture(scope="module")
def followed() -> set[str]:
    """Addresses that were there; pages share many."""
    return set()


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_there_and_all_that_it_names(
    client: TestClient, followed: set[str], path: str
) -> None:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text[-500:]
    assert HOSTILE not in answer.text
    assert "<style" not in answer.text
    assert not re.search(r'style="|onclick|javascript:', answer.text)
    found = re.findall(r'(?:href|src)="([^"#]+)', answer.text)
    for link in {link.replace("&amp;", "&") for link in found}:
        assert link.startswith(("/", "?")), link
        if "/draw/" in link and not link.split("?")[0].endswith(".png"):
            continue  # PDF and SVG: slow, below
        address = link if link.startswith("/") else path.split("?")[0] + link
        if address not in followed:
            target = client.get(address)
            assert target.status_code == 200, (link, target.text[:300])
            followed.add(address)


@pytest.mark.parametrize("page", [
    "", "/sample/3", "/sample/3/conv", "/layer/conv", "/layer/conv/unit/2", "/at/3/conv?y=1&x=2",
    "/map/conv", "/sample/3/fc", "/layer/fc/unit/1?by=mean",
])  # fmt: skip
def test_the_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((9, 3, 4, 5)).astype(np.float32)
    layers = {"conv": layer_of(values), "fc": layer_of(values.mean((2, 3)))}
    path = write_archive(tmp_path / "it's my run" / "archive", layers, list("abcdefghi"))
    with Archive.open(path) as archive:
        collection = Collection([archive])
        with TestClient(make_app(collection)) as client:
            shown = client.get(f"/a/{next(iter(collection.archive_views))}{page}").text
    code = html.unescape(
        re.findall(r'<details class="code">.*?<pre>(.*?)</pre>', shown, re.DOTALL)[0]
    )
    python, _, command = code.partition("\n\nfeaturemaps ")
    if "sklearn" not in python or find_spec("sklearn"):
        exec(python, {})
    if command:
        assert main([*shlex.split(command), f"hydra.run.dir={tmp_path / 'drawn'}"]) == 0
        pictures = [*(tmp_path / "drawn" / "pictures").rglob("*.png")]
        assert pictures


def test_samples_that_tie_at_zero_are_not_said_to_drive_a_unit(tmp_path: Path) -> None:
    values = np.zeros((9, 3, 2, 2), np.float32)
    values[[5, 2], 0, 1, 1] = 3, 7
    values[:, 2] = -2.5
    path = write_archive(tmp_path / "a", {"relu": layer_of(values)}, list("abcdefghi"))
    with Archive.open(path) as archive:
        archive_view = next(iter(Collection([archive]).archive_views.values()))
        layer = archive.layers["relu"]

        def found(channel: int, *, most: bool) -> tuple[list[int], str]:
            of = driven(archive_view, layer, channel, "max", 4, most=most)
            return of.rows.tolist(), of.note

        assert found(0, most=True) == ([2, 5], "7 of 9 samples are at 0")
        assert found(0, most=False) == (
            [0, 1, 3, 4],
            "7 of 9 samples are at 0: the first are shown",
        )
        assert found(1, most=True) == ([], "9 of 9 samples are at 0")
        assert found(2, most=True) == ([], "9 of 9 samples are at -2.5")


def test_every_archive_has_a_page_whatever_the_names(tmp_path: Path) -> None:
    with ExitStack() as opened:
        archives = []
        for folder in ("one/a", "two/a", "two/a-2", "two/A b"):
            layers = {"relu": layer_of(np.ones((3, 1, 2, 2), np.float32))}
            path = write_archive(tmp_path / folder, layers, list("abc"))
            archives.append(opened.enter_context(Archive.open(path)))
        views = Collection(archives).archive_views
        assert [view.archive for view in views.values()] == archives
        assert all(view.key == key for key, view in views.items())
        titles = [view.title for view in views.values()]
        assert titles == [f"{tmp_path}/one/a", f"{tmp_path}/two/a", "a-2", "A b"]


def odd_folder(archives: list[Path]) -> str:
    with Archive.open(archives[0]) as archive:
        collection = Collection([archive])
        return list(collection.archive_view("one").layers)[1]


def test_units_of_vectors_have_no_options_for_maps(client: TestClient) -> None:
    assert 'name="crop"' in client.get("/a/one/layer/maps/unit/0").text
    assert 'name="crop"' not in client.get("/a/one/layer/vector/unit/0").text


@pytest.mark.parametrize("by", ["max", "mean"])
def test_maps_of_a_unit_share_its_range(client: TestClient, archives: list[Path], by: str) -> None:
    stored = np.delete(MAPS[:, 1], 4, axis=0)
    low, high = float(stored.min()), float(stored.max())
    query = f"layer=maps&channel=1&samples=2&by={by}"
    for end, order in (("most", -1), ("least", 1)):
        drives = order * getattr(MAPS[:, 1], by)((1, 2))
        drives[4] = np.inf  # skipped
        row = int(np.argsort(drives, kind="stable")[0])
        unit = (MAPS[row, 1] - low) / (high - low)
        part = Image.fromarray(unit).resize((32, 40), Image.Resampling.BILINEAR)
        large = np.asarray(part)[..., None]
        with Archive.open(archives[0]) as archive:
            photo = archive.image(row)
        colours = mpl.colormaps["inferno"](large[..., 0])[..., :3] * 255
        expected = Image.fromarray(
            np.rint(0.85 * large * colours + (1 - 0.85 * large) * photo).clip(0, 255).astype("u1")
        )
        content = client.get(f"/a/one/draw/driven.png?{query}&end={end}").content
        drawn = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        height, width = 144, 115
        y, x = np.arange(height) * 40 // height, np.arange(width) * 32 // width  # pixels repeat
        wanted = np.asarray(expected)[y][:, x].astype(int)
        errors = [
            np.quantile(  # but for the ring around the peak, which ranks by the maximum
                np.abs(drawn[top : top + height : 5, left : left + width : 3] - wanted[::5, ::3]),
                0.97 if by == "max" else 1,
            )
            for top in range(drawn.shape[0] - height + 1)
            for left in range(24)
        ]
        assert min(errors) <= 1, (end, min(errors))


def test_numbers_are_the_archives(client: TestClient, archives: list[Path]) -> None:
    text = client.get("/a/one/layer/maps/unit/2").text
    rows = [list(map(int, found.split())) for found in re.findall(r'data-rows="([^"]*)"', text)]
    drives = [
        list(map(float, found.split())) for found in re.findall(r'data-drives="([^"]*)"', text)
    ]
    largest = MAPS[:, 2].max((1, 2)).astype(np.float64)
    largest[4] = np.nan  # skipped
    order = np.argsort(-np.nan_to_num(largest, nan=-9), kind="stable")
    assert rows[0] == order[:8].tolist()
    assert drives[0] == pytest.approx(largest[order[:8]])
    least = np.argsort(np.nan_to_num(largest, nan=99), kind="stable")[:8].tolist()
    assert rows[1] == least
    stored = np.delete(MAPS, 4, axis=0).mean((2, 3), dtype=np.float64)
    expected = np.corrcoef(stored.T)[2]
    pattern = r'unit/(\d+)">\d+</a></th><td(?: class="fault")?>([+-][\d.]+)( against)?<'
    rows_of = re.findall(pattern, text)
    found = {int(unit): float(value) for unit, value, _ in rows_of}
    assert all((value[0] == "-") is bool(against) for _, value, against in rows_of)
    assert any(value < 0 for value in found.values())
    assert found.keys() == {0, 1, 3, 4, 5}
    for unit, value in found.items():
        assert value == pytest.approx(expected[unit], abs=6e-4)
    assert f"<td>{stored[:, 2].mean():.4g}</td>" in text
    table = client.get("/a/one/data/unit.csv?layer=maps&channel=2").text.splitlines()
    assert len(table) == 25
    assert float(table[6].split(",")[3]) == pytest.approx(largest[5])
    array = np.load(
        io.BytesIO(client.get("/a/one/data/activation.npy?sample=7&layer=maps").content)
    )
    assert (array == MAPS[7]).all()
    vector = client.get("/a/one/data/vector.npy?sample=7&layer=maps&y=3&x=2").content
    assert (np.load(io.BytesIO(vector)) == MAPS[7, :, 3, 2]).all()
    page = client.get("/a/one/at/7/maps?y=3&x=2").text
    strongest = int(np.abs(MAPS[7, :, 3, 2]).argmax())
    assert f"<td>{MAPS[7, strongest, 3, 2]:.4g}</td>" in page
    points = client.get("/a/one/data/map.json?layer=maps").json()
    centred = stored - stored.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    scores = np.stack([points["x"], points["y"]], 1)
    np.testing.assert_allclose(np.abs(scores), np.abs(left[:, :2] * values[:2]), atol=1e-4)


@pytest.mark.parametrize("each", ["sample", "all"])
@pytest.mark.parametrize("layer", ["maps", "tokens"])
def test_the_nearest_positions_are_those_of_brute_force(
    client: TestClient, archives: list[Path], each: str, layer: str
) -> None:
    folder = layer if layer == "maps" else odd_folder(archives)
    maps = MAPS if layer == "maps" else np.moveaxis(TOKENS[:, 1:], 2, 1).reshape(24, 8, 3, 3)
    query = f"sample=7&layer={folder}&y=1&x=2&each={each}"
    lines = [
        json.loads(line)
        for line in client.get(f"/a/one/nearest?{query}").text.splitlines()
    ]  # fmt: skip
    assert lines[-1]["done"] == lines[-1]["total"] == 23
    vector = maps[7, :, 1, 2].astype(np.float64)
    every = []
    for row in range(24):
        if row == 4:
            continue
        wide = maps[row].astype(np.float64)
        cosine = np.einsum("c,chw->hw", vector, wide) / (
            np.linalg.norm(vector) * np.linalg.norm(wide, axis=0)
        )
        if row == 7:
            cosine[1, 2] = -9
        places = [(float(c), row, y, x) for (y, x), c in np.ndenumerate(cosine)]
        every += [max(places)] if each == "sample" else places
    every.sort(key=lambda place: -place[0])
    found = lines[-1]["found"]
    assert len(found) == min(24, len(every) if each == "sample" else 24)
    for place, (cosine, row, y, x) in zip(found, every, strict=False):
        assert (int(place["stem"][:6]), place["y"], place["x"]) == (row, y, x)
        assert place["cosine"] == pytest.approx(cosine, abs=1e-6)


def test_the_search_may_be_ended_after_any_part(archives: list[Path], monkeypatch: Any) -> None:
    from pipeline.explorer import positions

    monkeypatch.setattr(positions, "_BLOCK", 1)
    with Archive.open(archives[0]) as archive:
        rows = np.flatnonzero(archive.stored)
        search = nearest(archive.layers["maps"], rows, MAPS[0, :, 0, 0], 5, one_each=True)
        done, best = next(search)
        assert (done, best.shape) == (1, (1, 4))
        assert list(search)[-1][0] == 23


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_pictures_are_also_for_papers(client: TestClient, kind: str) -> None:
    for what, query in (
        ("maps", "sample=3&layer=maps"), ("driven", "layer=maps&channel=1"),
        ("distribution", "layer=maps&channel=1"), ("map", "layer=maps"),
    ):  # fmt: skip
        answer = client.get(f"/a/one/draw/{what}.{kind}?{query}")
        assert answer.status_code == 200
        assert answer.content.startswith(b"%PDF" if kind == "pdf" else b"<?xml")
    again = client.get("/a/one/draw/map.png?layer=maps")
    tag = {"if-none-match": again.headers["etag"]}
    assert client.get("/a/one/draw/map.png?layer=maps", headers=tag).status_code == 304


REFUSED = [
    ("host", {"host": f"evil.example:{PORT}"}, 421),
    ("rebinding", {"host": f"localhost.evil.example:{PORT}"}, 421),
    ("no name", {"host": f":{PORT}"}, 421),
    ("no port", {"host": "localhost:port"}, 421),
    ("two ports", {"host": f"localhost:{PORT}:{PORT}"}, 421),
    ("allowed, but as a part", {"host": "evil.proxy.example"}, 421),
    ("an address of another", {"host": f"10.0.0.7:{PORT}"}, 421),
    ("tricky", {"host": f"127.0.0.1:{PORT}@evil.example"}, 421),
    ("empty", {"host": ""}, 421),
]


@pytest.mark.parametrize(("headers", "status"), [case[1:] for case in REFUSED])
def test_other_names_are_refused_before_all(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    for path in ("/", "/a/one", f"/?token={TOKEN}", "/nosuch"):
        answer = client.get(path, headers=headers, follow_redirects=False)
        assert answer.status_code == status
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:9000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:9000",
     "proxy.example", "proxy.example:443", "named.example:99"],
)  # fmt: skip
def test_loopback_names_are_let_in_on_any_port_and_others_where_allowed(
    archives: list[Path], host: str
) -> None:
    with Archive.open(archives[0]) as archive:
        app = make_app(Collection([archive]))
        allowed = ("Proxy.example", "named.example:99")
        guarded = AuthMiddleware(app, TOKEN, PORT, allowed=allowed)
        with TestClient(guarded, base_url="http://127.0.0.1") as client:
            headers = {"host": host}
            assert client.get("/", headers=headers).status_code == 403  # the token is needed yet
            answer = client.get(f"/?token={TOKEN}", headers=headers, follow_redirects=False)
            assert answer.status_code == 303
            headers["host"] = "named.example:98"
            assert client.get("/", headers=headers).status_code == 421


def test_only_who_has_the_token_is_let_in(client: TestClient) -> None:
    stranger = TestClient(client.app, base_url=f"http://localhost:{PORT}")
    for path in ("/", "/a/one", "/static/style.css", "/a/one/draw/strip.png?sample=1"):
        answer = stranger.get(path)
        assert answer.status_code == 403
        assert "img" not in answer.text
    for wrong in ("", "secre", "secret2", "ü"):
        answer = stranger.get("/", params={"token": wrong}, follow_redirects=False)
        assert answer.status_code == 403
    answer = stranger.get(f"/a/one?page=1&token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/a/one?page=1"
    cookie = answer.headers["set-cookie"].lower()
    assert "samesite=strict" in cookie
    assert "httponly" in cookie
    assert stranger.get("/a/one").status_code == 200
    away = stranger.get(f"//evil.example/?token={TOKEN}", follow_redirects=False)
    assert away.headers.get("location", "/").startswith("/")
    assert not away.headers.get("location", "/").startswith("//")


def test_it_only_reads_and_says_so_to_browsers(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/a/one").status_code == 405
    assert client.head("/a/one").status_code == 200
    for path in ("/", "/nosuch", "/a/one/draw/strip.png?sample=1", "/static/style.css"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


MALFORMED = [
    "/a/%2e%2e/%2e%2e/etc/passwd", "/a/one/sample/..%2f..%2fetc%2fpasswd", "/static/../app.py",
    "/static/%2e%2e%2fapp.py", "/a/one/sample/%00", "/a/%2fetc%2fpasswd", "/a/one/sample/999999999",
    "/a/one/sample/-1", "/a/one/sample/3/nosuch", "/a/one/layer/maps/unit/6",
    "/a/one/layer/maps/unit/-1", "/a/one/layer/maps/unit/1e3", "/a/one/layer/maps/unit/" + "9" * 500,
    "/a/one?page=0", "/a/one?page=99999999999999999999", "/a/one?page=x", "/a/one?q=" + "x" * 401,
    "/a/one?q=%00", "/a/one/at/3/vector", "/a/one/at/3/maps?y=-1", "/a/one/at/3/maps?y=9&x=9",
    "/a/one/at/4/maps", "/a/one/draw/strip.exe?sample=1", "/a/one/draw/nosuch.png", "/a/one/draw/mean.png",
    "/a/one/draw/mean.png?sample=1&layer=maps&side=99999", "/a/one/draw/maps.png?sample=1&layer=maps&maps=0",
    "/a/one/draw/maps.png?sample=1&layer=maps&page=77", "/a/one/draw/maps.png?sample=1&layer=maps&colormap=x",
    "/a/one/draw/crop.png?sample=1&layer=vector&y=0&x=0", "/a/one/data/manifest.json",
    "/a/one/data/unit.csv?layer=maps&channel=77", "/a/one/nearest?sample=1&layer=vector",
    "/a/one/nearest?sample=1&layer=maps&y=77", "/side/sample?id=nosuch", "/side/unit?layer=maps&channel=99",
    "/a/one/sample/3?colormap=nosuch", "/a/one/layer/maps/unit/1?by=nosuch", "/" + "x" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("path", MALFORMED)
def test_what_is_malformed_is_refused_in_words(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert 400 <= answer.status_code < 500, answer.text
    assert "root:" not in answer.text
    assert "Traceback" not in answer.text
    assert "unexpected" not in answer.text
    assert client.get("/" + "x" * 5000).status_code == 414


ENCODED = ("%2e%2e", "%00", "%2f", "%ff")
words = st.one_of(
    st.sampled_from([
        "a", "one", "two", "sample", "layer", "maps", "vector", "unit", "at", "map", "draw", "data",
        "nearest", "static", "style.css", "strip.png", "driven.png", "unit.csv", "..", ".", *ENCODED,
        "%00", "3", "000003-img03", "-1", "side", "", "%2f", "%ff", "etc", "passwd",
    ]),
    st.text(max_size=12),
)  # fmt: skip
parameters = st.dictionaries(
    st.sampled_from(["page", "q", "label", "layer", "sample", "channel", "y", "x", "by", "maps", "order",
                     "id", "token", "each", "side", "end", "crop", "normalize", "colormap", "?"]),
    st.one_of(st.text(max_size=12), st.integers().map(str),
              st.sampled_from(["maps", "vector", "3", "0", "all", "mean"])),
    max_size=4,
)  # fmt: skip


@pytest.mark.parametrize("count", [250, pytest.param(1000, marks=pytest.mark.broad)])
def test_any_address_is_answered(client: TestClient, count: int) -> None:
    @settings(deadline=None, max_examples=count)
    @given(parts=st.lists(words, max_size=7), query=parameters)
    def ask(parts: list[str], query: dict[str, str]) -> None:
        answered(client, parts, query)

    ask()


def answered(client: TestClient, parts: list[str], query: dict[str, str]) -> None:
    from urllib.parse import quote

    path = "/" + "/".join(part if part in ENCODED else quote(part, safe="") for part in parts)
    query.pop("token", None)
    answer = client.get(f"http://127.0.0.1:{PORT}{path}", params=query, follow_redirects=False)
    assert answer.status_code < 500, answer.text
    assert "root:" not in answer.text


def test_a_damaged_shard_is_told_and_others_work(archives: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "archive"
    shutil.copytree(archives[0], path)
    shard = path / "shards" / "00001.h5"
    content = bytearray(shard.read_bytes())
    at = content.find(MAPS[10].tobytes())
    assert at > 0
    content[at] ^= 1
    shard.write_bytes(content)
    with Archive.open(path) as archive:
        guarded = AuthMiddleware(make_app(Collection([archive])), TOKEN, PORT)
        with TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}") as client:
            client.get(f"/?token={TOKEN}")
            key = next(iter(Collection([archive]).archive_views))
            answer = client.get(f"/a/{key}/sample/10/maps")
            assert answer.status_code == 410
            assert "damaged shard (at row 10 of /layers/maps/activation" in answer.text
            picture = client.get(f"/a/{key}/draw/overview.png?sample=10&layer=maps")
            assert (picture.status_code, picture.headers["content-type"]) == (410, "image/png")
            assert client.get(f"/a/{key}/sample/11/maps").status_code == 200
            assert client.get(f"/a/{key}/draw/strip.png?sample=0").status_code == 200


def test_nothing_is_written(client: TestClient, archives: list[Path]) -> None:
    def digest() -> dict[str, str]:
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for path in archives for file in sorted(path.rglob("*")) if file.is_file()
        }  # fmt: skip

    before = digest()
    for path in PAGES:
        client.get(path)
    assert digest() == before


def test_kept_results_are_bounded_and_made_once() -> None:
    made: list[int] = []
    kept = LRUCache(100)

    def make(number: int) -> bytes:
        made.append(number)
        return bytes(30)

    for number in (1, 2, 3, 1, 4, 1, 2):
        kept.get(number, lambda number=number: make(number))  # type: ignore[misc]
    assert made == [1, 2, 3, 4, 2]  # 2 had to go for 4
    with pytest.raises(ZeroDivisionError):
        kept.get("bad", lambda: bytes(1 // 0))
    assert kept.get("bad", lambda: b"good") == b"good"
    started, finish = threading.Event(), threading.Event()

    def slow() -> bytes:
        started.set()
        finish.wait(20)
        return make(5)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept.get, 5, slow)
        started.wait(20)
        second = pool.submit(kept.get, 5, lambda: make(5))
        assert kept.get(6, lambda: make(6)) == bytes(30)  # another result does not wait
        finish.set()
        assert (first.result(), second.result()) == (bytes(30), bytes(30))
    assert made.count(5) == 1


def test_attention_and_drawn_positions_are_no_places_of_the_image(tmp_path: Path) -> None:
    layers = {
        "attention": layer_of(values_of(0, 2, 5, 5), axes=("head", "query", "key")),
        "drawn": layer_of(values_of(1, 4, 3), drawn=(0, 9)),
        "wide": layer_of(values_of(2, 200)),
    }
    path = write_archive(tmp_path / "archive", layers, [str(i) for i in range(24)])
    with Archive.open(path) as archive:
        guarded = AuthMiddleware(make_app(Collection([archive])), TOKEN, PORT)
        with TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}") as client:
            client.get(f"/?token={TOKEN}")
            base = client.get("/").text.split('href="/a/')[1].split('"')[0]
            for layer in layers:
                assert client.get(f"/a/{base}/sample/3/{layer}").status_code == 200
                assert client.get(f"/a/{base}/layer/{layer}/unit/1").status_code == 200
                assert client.get(f"/a/{base}/map/{layer}").status_code == 200
                for kind, query in (("overview", "sample=3&"), ("driven", "channel=1&")):
                    answer = client.get(f"/a/{base}/draw/{kind}.png?{query}layer={layer}")
                    assert answer.status_code == 200, answer.text
                assert client.get(f"/a/{base}/at/3/{layer}").status_code == 404
                crop = f"/a/{base}/draw/crop.png?sample=3&layer={layer}&y=0&x=0"
                assert client.get(crop).status_code == 404


def test_dead_and_saturated_channels_are_told(tmp_path: Path) -> None:
    values = values_of(0, 4, 3, 3)
    values[:, 1] = 0
    values[:, 2] = np.where(values[:, 2] > -1, 5, 0)  # clipped at the top
    path = write_archive(tmp_path / "archive", {"maps": layer_of(values)}, [*map(str, range(24))])
    with Archive.open(path) as archive:
        guarded = AuthMiddleware(make_app(Collection([archive])), TOKEN, PORT)
        with TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}") as client:
            client.get(f"/?token={TOKEN}")
            base = client.get("/").text.split('href="/a/')[1].split('"')[0]
            text = client.get(f"/a/{base}/layer/maps").text
    assert "1 dead, 0 constant, 0 always on, 1 saturated (of 24 samples)" in text
    lines = [line for line in text.splitlines() if "/unit/" in line]
    said = [line.rpartition("<td>")[2].removesuffix("</td></tr>").strip() for line in lines]
    assert said == ["", "dead", "saturated", ""]
