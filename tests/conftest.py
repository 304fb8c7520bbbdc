"""Fixtures: photos of every kind, the command line in this process, one small archive."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("xdist") is None:  # `uv run pytest` in a new environment: install what the tests need
    if "UV" not in os.environ:
        sys.exit("The tests need the development tools: run `uv sync --group dev`.")
    command = ["uv", "run", "--group", "dev", "pytest", *sys.argv[1:]]
    atexit.register(os.execv, os.environ["UV"], command)  # when pytest stopped capturing
    sys.exit()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # every core has a process of pytest-xdist
if gc.isenabled():  # until all tests are imported: a quarter of that time
    gc.disable()

import httpx
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, settings
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.cli.main import main
from pipeline.common.places import place
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.settings import Extraction
from pipeline.models.tiny import TinyModel
from tests.helpers.chromium import CHROMIUM

Run = Callable[..., tuple[int, str, str]]
"""Runs a command line: exit code, stdout, stderr."""

# No test fails because the machine is busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
expect.set_options(timeout=60_000)
if "PYTEST_XDIST_WORKER" not in os.environ:  # once, before the workers; in a new home it is slow
    import matplotlib.font_manager  # noqa: F401

REPOSITORY = Path(__file__).resolve().parent.parent


def photo(seed: int = 0, size: tuple[int, int] = (48, 40)) -> np.ndarray:
    """Return noise as an RGB picture, uint8 (height, width, rgb)."""
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


_lasting_modules: set[str] = set()
"""Modules that no test made."""


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Undo what a test leaves in this process, so that tests run in any order."""
    path = [*sys.path]
    yield
    sys.path[:] = path
    base = str(tmp_path_factory.getbasetemp())
    for name in {*sys.modules} - _lasting_modules:
        if str(getattr(sys.modules.get(name), "__dict__", {}).get("__file__")).startswith(base):
            del sys.modules[name]  # another test's may have the same name
        else:
            _lasting_modules.add(name)
    GlobalHydra.instance().clear()
    for logger in (logging.getLogger(), logging.getLogger("pipeline.traceback")):
        for handler in [*logger.handlers]:
            if isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                handler.close()


def pytest_collection_finish() -> None:
    gc.freeze()  # modules stay
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return the system's Chromium, started once."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=180_000
        )
        yield chromium
        chromium.close()


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line here and returns exit code, stdout and stderr.

    Commands with a run folder put it under `tmp_path/run`.
    """

    def call(command: str, *arguments: str, folder: str = "run") -> tuple[int, str, str]:
        capfd.readouterr()
        place = (
            [f"hydra.run.dir={tmp_path / folder}"]
            if command in ("run", "extract", "render")
            else []
        )
        code = main([command, *arguments, *place])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of small photos of many sizes and modes."""
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    (folder / "dogs" / "deep").mkdir(parents=True)
    colour = Image.fromarray(photo(1, (60, 44)))
    colour.save(folder / "cats" / "colour.jpg")
    colour.convert("L").save(folder / "cats" / "grey.png")
    colour.convert("CMYK").save(folder / "cats" / "cmyk.jpg")
    alpha = colour.convert("RGBA")
    alpha.putalpha(Image.fromarray(photo(2, (60, 44))[..., 0]))
    alpha.save(folder / "dogs" / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a quarter turn
    Image.fromarray(photo(3, (30, 70))).save(folder / "dogs" / "turned.jpg", exif=exif)
    colour.convert("P").save(folder / "dogs" / "deep" / "palette.png")
    colour.convert("1").save(folder / "dogs" / "deep" / "bits.png")
    Image.fromarray(photo(4, (19, 90))).save(folder / "loose.webp", lossless=True)
    (folder / "notes.txt").write_text("not a photo")
    return folder


@pytest.fixture(scope="session")
def tiny_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of the tiny model over seven synthetic images in three shards."""
    path = tmp_path_factory.mktemp("tiny") / "archive"
    extract(tiny_extraction(path))
    return path


def tiny_extraction(path: Path, **changes: object) -> Extraction:
    """Return the configuration of `tiny_archive`."""
    from pipeline.extraction.settings import Storage

    values: dict[str, object] = {
        "model": TinyModel(),
        "dataset": Synthetic(samples=7, height=20, width=24),
        "layers": LayerSelector(include=("conv1", "bn1", "relu", "conv2", "pool", "fc")),
        "loader": Loader(batch_size=2, num_workers=0),
        "storage": Storage(shard_samples=3),
        "archive": str(path),
        "device": "cpu",
    }
    return Extraction(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def _moto() -> Iterator[Any]:
    from tests.helpers.object_store import ObjectStore

    store = ObjectStore()
    server = store.start()
    yield store
    server.shutdown()


@pytest.fixture
def s3(_moto: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return an S3 server with an empty bucket, to which the environment leads."""
    from tests.helpers.object_store import BUCKET, ENVIRONMENT

    _moto.clear()
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL_S3": _moto.endpoint}.items():
        monkeypatch.setenv(name, value)
    httpx.post(f"{_moto.endpoint}/moto-api/reset")
    httpx.put(f"{_moto.endpoint}/{BUCKET}")
    _moto.clear()
    yield _moto
    _moto.clear()


@pytest.fixture
def remote(s3: Any, tiny_archive: Path) -> Any:
    """Return the server with a copy of the tiny archive under `URL`."""
    from tests.helpers.object_store import URL

    for file in tiny_archive.rglob("*"):
        if file.is_file() and not file.name.startswith("lock"):
            place(f"{URL}/{file.relative_to(tiny_archive).as_posix()}").upload(file)
    s3.clear()
    return s3


@pytest.fixture
def opened(tiny_archive: Path) -> Iterator[Archive]:
    with Archive.open(tiny_archive) as archive:
        yield archive
