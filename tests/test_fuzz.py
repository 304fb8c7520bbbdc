"""Archives with a few bytes changed: never a crash, a hang, a foreign exception, or other data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.extraction.extract import extract
from tests.conftest import tiny_extraction
from tests.fuzzing import Mode, digest_of_everything, fuzz


@pytest.fixture(scope="module")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive whose structure is most of it."""
    from pipeline.layers.selector import LayerSelector

    path = tmp_path_factory.mktemp("fuzz") / "archive"
    extract(tiny_extraction(path, layers=LayerSelector(include=("conv1", "fc"))))
    return path


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    ("first", "rounds"), [(0, 15), pytest.param(1000, 700, marks=pytest.mark.broad)]
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_changed_bytes_are_refused_or_do_no_harm(
    small_archive: Path, tmp_path: Path, mode: Mode, first: int, rounds: int
) -> None:
    found: Counter[str] = Counter()
    whole = digest_of_everything(small_archive, check=True)
    for seed in range(first, first + rounds):
        ended = fuzz(small_archive, whole, tmp_path / "changed", seed, mode)
        assert ended in ("unharmed", "refused", "other data"), f"seed {seed}: {ended}"
        assert ended != "other data" or mode is not Mode.DAMAGED, f"seed {seed}"
        found[ended] += 1
    least = 8 if mode is Mode.UNCHECKED else 4  # rows are read past HDF5 then, as they are
    assert found["refused"] > rounds / least, found
