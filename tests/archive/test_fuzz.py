"""Changed archives: never a crash, a hang, a foreign exception, or other data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.capture.selector import LayerSelector
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage
from tests.conftest import tiny_extraction
from tests.helpers.fuzzing import Mode, digest_of_everything, fuzz


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive whose structure is most of it, one with compressed chunks."""
    path = tmp_path_factory.mktemp("fuzz") / "archive"
    layers = LayerSelector(include=("conv1", "fc"))
    storage = Storage(codec="gzip", shard_samples=4)
    extract(tiny_extraction(path, layers=layers, storage=storage))
    return path


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    ("first", "rounds"),
    [
        (0, 75),
        pytest.param(75, 225, marks=pytest.mark.slow),
        pytest.param(300, 3000, marks=pytest.mark.broad),
    ],
)
def test_changed_archives_are_refused_or_read_as_they_were(
    small_archive: Path, tmp_path: Path, mode: Mode, first: int, rounds: int
) -> None:
    endings: Counter[str] = Counter()
    whole = digest_of_everything(small_archive)
    allowed = {"unharmed", "refused"} | ({"other data"} if mode is Mode.UNCHECKED else set())
    for seed in range(first, first + rounds):
        ending = fuzz(small_archive, whole, tmp_path / "changed", seed, mode)
        assert ending in allowed, f"seed {seed}: {ending}"
        endings[ending] += 1
    assert endings["refused"] > rounds / 8, endings
