"""Odd queries of the explorer: each answer is right or a refusal in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipeline import Archive
from pipeline.explorer.app import make_app
from pipeline.explorer.collection import Collection
from tests.helpers.random_archives import archive_of, random


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("queries") / "one" / "archive"
    path = archive_of(folder, {"maps": random(4, 3, 2, 2)}, skipped=("0002",))
    with Archive.open(path) as opened:
        yield TestClient(make_app(Collection([opened])), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("--5", "is not an integer"),
        ("1-2", "is not an integer"),
        ("1.5", "is not an integer"),
        ("nan", "is not an integer"),
        ("٣", "is not an integer"),
        ("-1", "must be between 0 and 1024"),
        ("9" * 60, "must be between 0 and 1024"),
        ("0" * 21 + "1025", "must be between 0 and 1024"),
    ],
)
def test_a_number_out_of_range_is_refused(client: TestClient, text: str, reason: str) -> None:
    answer = client.get("/a/one/draw/photo.png", params={"sample": "0", "side": text})
    assert answer.status_code == 400
    page = client.get("/a/one/layer/maps", params={"page": text})
    assert page.status_code == 400
    assert reason.partition(" between")[0] in page.text


@pytest.mark.parametrize(
    "address",
    [
        "data/activation.npy?sample=2&layer=maps", "data/vector.npy?sample=2&layer=maps",
        "draw/maps.png?sample=2&layer=maps", "nearest?sample=2&layer=maps",
    ],
)  # fmt: skip
def test_a_skipped_sample_has_no_data(client: TestClient, address: str) -> None:
    answer = client.get(f"/a/one/{address}")
    assert answer.status_code == 404
    assert client.get(f"/a/one/{address}".replace("sample=2", "sample=1")).status_code == 200


def test_a_picture_is_revalidated_so_that_a_new_archive_shows(tmp_path: Path) -> None:
    answers, tag = [], ""
    for seed in (0, 1):  # served from one address, one after the other
        path = archive_of(
            tmp_path / str(seed) / "one" / "archive", {"maps": random(2, 3, 2, 2, seed=seed)}
        )
        with Archive.open(path) as opened:
            client = TestClient(make_app(Collection([opened])))
            address = "/a/one/draw/mean.png?sample=0&layer=maps"
            answers.append(client.get(address, headers={"if-none-match": tag}))
            tag = answers[-1].headers["etag"]
            assert client.get(address, headers={"if-none-match": tag}).status_code == 304
    assert [answer.headers["cache-control"] for answer in answers] == ["private, no-cache"] * 2
    assert answers[1].status_code == 200
    assert answers[0].content != answers[1].content
