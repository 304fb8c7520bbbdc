"""A stream yields what a loader over the archive would, bit for bit, and writes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import ActivationLoader, ActivationStream, FlatFolder, extract
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError, LayerError, SampleError
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction import activation_stream as module
from pipeline.extraction.loader import Loader
from pipeline.extraction.reductions.subsets import RandomPositions
from pipeline.extraction.settings import Extraction, Precision, Shard, Storage
from pipeline.training.batches import LoadedBatch
from tests.conftest import photo, tiny_extraction
from tests.helpers.replicated import threads

COUNT, FORWARD = 41, 4
SMALL_RUNS = {"run_bytes": 40_000, "reservoir": 2}


def extraction(path: Path, **changes: object) -> Extraction:
    values: dict[str, object] = {
        "dataset": Synthetic(samples=COUNT, height=20, width=24),
        "layers": LayerSelector(include=("conv1", "fc")),
        "loader": Loader(batch_size=FORWARD, num_workers=0), "storage": Storage(shard_samples=20),
    }  # fmt: skip
    return tiny_extraction(path, **values | changes)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "archive"
    extract(extraction(path))
    return path


@pytest.fixture(scope="module")
def stream_of(archive: Path) -> Any:
    """Return a function that makes streams of the archive's extraction."""
    return lambda *arguments, **options: ActivationStream(
        extraction(archive.parent / "never"), *arguments, **options
    )


def same(one: list[LoadedBatch], other: list[LoadedBatch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for x, y in ((a.rows, b.rows), (a.labels, b.labels)):
            np.testing.assert_array_equal(x, y)
        assert a.activations.keys() == b.activations.keys()
        assert a.positions.keys() == b.positions.keys()
        for key, values in a.positions.items():
            np.testing.assert_array_equal(values, b.positions[key])
        for key, tensor in a.activations.items():
            assert tensor.dtype == b.activations[key].dtype
            assert torch.equal(tensor, b.activations[key])


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        ("conv1", {"shuffle": "none"}),
        (["fc", "conv1"], {}),
        (["fc", "conv1"], SMALL_RUNS),
        ("conv1", {"tokens": "patch", "images_per_batch": 9, **SMALL_RUNS}),
        ("conv1", {"positions": 5, "dtype": "bfloat16", "drop_last": True, **SMALL_RUNS}),
        ("fc", {"labels": [1, 3], "ids": lambda id_: id_ != "synthetic-000005", **SMALL_RUNS}),
        ("conv1", {"rank": 1, "world_size": 3, **SMALL_RUNS}),
        ("fc", {"rows": [3, 4, 5, 6, 7, 40], "shuffle": "none"}),
    ],
)
def test_batches_are_the_loaders(
    archive: Path, stream_of: Any, layers: Any, options: dict[str, Any]
) -> None:
    loader = ActivationLoader(archive, layers, 3, seed=5, **options)
    stream = stream_of(layers, 3, seed=5, **options)
    assert len(stream) == len(loader)
    for _ in range(2):
        same(list(stream), list(loader))
    for each in (loader, stream):
        each.close()
    assert not (archive.parent / "never").exists()


def test_an_interrupted_epoch_continues_with_filters(archive: Path, stream_of: Any) -> None:
    options = {"labels": [0, 2], "positions": 3, **SMALL_RUNS}
    loader = ActivationLoader(archive, "conv1", 2, **options)
    expected, following = list(loader), list(loader)
    for done in (0, 1, 4, len(expected)):
        first, again = stream_of("conv1", 2, **options), stream_of("conv1", 2, **options)
        batches = iter(first)
        same([next(batches) for _ in range(done)], expected[:done])
        again.load_state_dict(first.state_dict())
        same(list(again), expected[done:] or following)
    loader.load_state_dict(again.state_dict())  # they have the same options
    loader.close()


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_values_are_rounded_as_they_would_be_stored(tmp_path: Path, stored: Precision) -> None:
    changes: dict[str, Any] = {
        "storage": Storage(dtype=stored), "dataset": Synthetic(samples=9, height=20, width=24),
        "reduction": RandomPositions(count=6, seed=3),
    }  # fmt: skip
    extract(extraction(tmp_path / "a", **changes))
    stream = ActivationStream(replace(extraction(tmp_path / "b", **changes), archive=None))
    loader = ActivationLoader(tmp_path / "a", ["conv1", "fc"], FORWARD)
    batches = list(stream)
    assert [*batches[0].activations] == ["conv1", "fc"]
    assert [*batches[0].positions] == ["conv1"]
    same(batches, list(loader))
    loader.close()


def test_unreadable_images_are_left_out_or_named(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(11):
        Image.fromarray(photo(number, (24, 20))).save(photos / f"{number:02}.png")
    for number in (0, 4, 5, 6, 7, 10):  # a whole batch, too
        (photos / f"{number:02}.png").write_bytes(b"no image")
    skipping = extraction(tmp_path / "a", dataset=FlatFolder(root=str(photos)), on_error="skip")
    extract(skipping)
    loader = ActivationLoader(tmp_path / "a", "conv1", 2, shuffle="none")
    stream = ActivationStream(skipping, "conv1", 2, shuffle="none")
    batches = list(stream)
    assert torch.cat([batch.rows for batch in batches]).tolist() == [1, 2, 3, 8, 9]
    same(batches, list(loader))
    loader.close()
    with pytest.raises(SampleError, match=r"sample 0 \(.*00.png\): .*; set on_error=skip"):
        list(ActivationStream(replace(skipping, on_error="raise"), "conv1"))
    with pytest.raises(SampleError, match="more than max_errors=3"):
        ActivationStream(replace(skipping, max_errors=3))
    (photos / "09.png").write_bytes(b"now damaged")
    with pytest.raises(SampleError, match=r"sample 9 \("):
        list(stream)


def test_replicas_and_workers_change_nothing(archive: Path, stream_of: Any) -> None:
    loader = ActivationLoader(archive, "conv1", 5, **SMALL_RUNS)
    expected = list(loader)
    loader.close()
    with threads(2):
        same(list(stream_of("conv1", 5, **SMALL_RUNS)), expected)
    config = replace(
        extraction(archive), loader=Loader(batch_size=FORWARD, num_workers=1), archive=None
    )
    same(list(ActivationStream(config, "conv1", 5, **SMALL_RUNS)), expected)


def test_the_model_runs_once_for_each_batch(
    archive: Path, stream_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    load = module.load

    def noted(plan: Any, ranges: Any) -> Any:
        asked.extend(ranges)
        return load(plan, ranges)

    monkeypatch.setattr(module, "load", noted)
    for options in ({"shuffle": "none"}, {}, SMALL_RUNS, {"run_bytes": 1}):
        list(stream_of("conv1", 3, **options))
        assert len(asked) == len({*asked}) == 11
        asked.clear()


def test_torch_is_left_as_it_was(stream_of: Any) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    stream = stream_of("fc")
    batches = iter(stream)
    next(batches)
    assert torch.are_deterministic_algorithms_enabled()
    batches.close()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(before, torch.random.get_rng_state())
    assert [len(list(stream)) for _ in range(2)] == [11, 11]


def test_what_a_stream_cannot_do_is_one_line(archive: Path, stream_of: Any) -> None:
    for options, text in (
        ({"shuffle": "full"}, "shuffle: full would run the model once .*; use blocks"),
        ({"normalize": "rms"}, "normalize: a stream has no statistics; use normalize=none"),
        ({"batch_size": -1}, "^batch_size: must be at least 1, got -1$"),
        ({"batch_size": 0}, "^batch_size: must be at least 1, got 0$"),
        ({"run_bytes": "8M"}, "^run_bytes: must be a whole number, got '8M'$"),
        ({"layers": "conv9"}, "no layer 'conv9'; did you mean conv1"),
    ):
        with pytest.raises((ConfigError, LayerError), match=text):
            stream_of(**options)
    with pytest.raises(ConfigError, match="shard: a stream has no shards"):
        ActivationStream(replace(extraction(archive), shard=Shard(index=0, count=2)))
    stream = stream_of("fc", shuffle="none")
    first = iter(stream)
    next(first)
    with pytest.raises(ConfigError, match="one epoch at a time"):
        next(iter(stream))
    assert len(list(first)) == 10
