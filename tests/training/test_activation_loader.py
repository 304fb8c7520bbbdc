"""Batches for training: complete, disjoint, the same for any reader, resumable, and well mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive.reading.archive import Archive
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ConfigError
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.reductions.subsets import RandomPositions
from pipeline.extraction.settings import Storage
from pipeline.training.activation_dataset import ActivationDataset
from pipeline.training.activation_loader import ActivationLoader
from pipeline.training.batches import LoadedBatch
from pipeline.training.block_shuffle import block_shuffled
from pipeline.training.sample_source import ReusedMemory
from tests.conftest import tiny_extraction
from tests.helpers.random_archives import archive_of

SMALL_RUNS = {"run_bytes": 40_000, "reservoir": 3}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "archive"
    extract(tiny_extraction(
        path, dataset=Synthetic(samples=101, height=20, width=24),
        storage=Storage(shard_samples=20),
        layers=LayerSelector(include=("conv1", "fc")), loader=Loader(batch_size=4, num_workers=0),
    ))  # fmt: skip
    return path


def epoch(loader: ActivationLoader) -> list[LoadedBatch]:
    return list(loader)


@pytest.mark.parametrize("shuffle", ["blocks", "full", "none"])
def test_every_sample_comes_once_with_its_values_and_label(many: Path, shuffle: str) -> None:
    with Archive.open(many) as archive:
        values = {name: archive.layers[name][:] for name in ("conv1", "fc")}
        labels = [sample.label for sample in archive.samples]
    loader = ActivationLoader(many, ["conv1", "fc"], 8, shuffle=shuffle, **SMALL_RUNS)
    orders = []
    for _ in range(2):
        batches = epoch(loader)
        assert [len(batch.labels) for batch in batches] == [8] * 12 + [5]
        assert len(loader) == 13
        rows = torch.cat([batch.rows for batch in batches]).tolist()
        assert sorted(rows) == list(range(101))
        assert torch.cat([batch.labels for batch in batches]).tolist() == [labels[r] for r in rows]
        for name in values:
            found = np.concatenate([batch.activations[name].numpy() for batch in batches])
            np.testing.assert_array_equal(found, values[name][rows])
        orders.append(rows)
    assert (orders[0] == orders[1]) is (shuffle == "none")
    assert (orders[0] == list(range(101))) is (shuffle == "none")
    loader.close()


@pytest.mark.parametrize("shuffle", ["blocks", "full", "none"])
@pytest.mark.parametrize("options", [{}, {"images_per_batch": 10**12}, {"positions": 3}])
def test_a_batch_larger_than_the_archive_holds_all_samples(
    many: Path, shuffle: str, options: dict[str, int]
) -> None:
    loader = ActivationLoader(many, "conv1", 10**12, shuffle=shuffle, **options)
    (batch,) = epoch(loader)
    each = options.get("positions", 1)
    assert sorted(batch.rows.tolist()) == sorted([*range(101)] * each)
    loader.close()


def test_what_is_held_is_never_overwritten(many: Path) -> None:
    with Archive.open(many) as archive:
        stored = archive.layers["conv1"][:]
    dataset = ActivationDataset(many, "conv1")
    items = [dataset[row][0]["conv1"].numpy() for row in range(20)]
    np.testing.assert_array_equal(np.stack(items), stored[:20])
    assert not any(np.shares_memory(items[0], other) for other in items[1:])
    loader = ActivationLoader(many, "conv1", 8, **SMALL_RUNS)
    abandoned = iter(loader)
    batches = [next(abandoned), *loader]
    for batch in batches:
        np.testing.assert_array_equal(batch.activations["conv1"], stored[batch.rows])
    assert sorted(torch.cat([batch.rows for batch in batches[1:]]).tolist()) == list(range(101))
    loader.close()


@pytest.mark.parametrize("shuffle", ["blocks", "full", "none"])
@pytest.mark.parametrize("batch_size", [8, 101])
def test_of_two_iterations_at_once_the_first_stops(
    many: Path, shuffle: str, batch_size: int
) -> None:
    """Both would move the loader's one position, and each would miss batches."""
    loader = ActivationLoader(many, "fc", batch_size, shuffle=shuffle, **SMALL_RUNS)
    with pytest.raises(ConfigError, match="another iteration over this loader moved its position"):
        list(zip(loader, loader, strict=False))
    first = iter(loader)
    next(first)
    list(loader)
    epoch_after = loader.epoch
    with pytest.raises(ConfigError, match="use a loader for each"):
        next(first)
    assert loader.epoch == epoch_after
    loader.close()


def test_a_part_of_the_samples(many: Path) -> None:
    loader = ActivationLoader(many, "fc", 8, rows=[50, 3, 7, 99, 4], **SMALL_RUNS)
    assert len(loader) == 1
    assert sorted(next(iter(loader)).rows.tolist()) == [3, 4, 7, 50, 99]
    loader.close()


@pytest.mark.parametrize("shuffle", ["blocks", "full"])
def test_the_order_depends_on_seed_and_epoch_alone(many: Path, shuffle: str) -> None:
    def rows(seed: int, threads: int) -> list[int]:
        loader = ActivationLoader(
            many, "fc", 8, shuffle=shuffle, seed=seed, num_threads=threads, **SMALL_RUNS
        )
        loader.epoch = 5
        found = torch.cat([batch.rows for batch in loader]).tolist()
        loader.close()
        return [int(row) for row in found]

    assert rows(1, 1) == rows(1, 4)
    assert rows(1, 1) != rows(2, 1)


@pytest.mark.parametrize("shuffle", ["blocks", "full", "none"])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_an_epoch(many: Path, shuffle: str, count: int) -> None:
    rows: list[int] = []
    sizes = []
    for index in range(count):
        loader = ActivationLoader(
            many, "fc", 8, shuffle=shuffle, rank=index, world_size=count, **SMALL_RUNS
        )
        found = torch.cat([batch.rows for batch in loader]).tolist()
        sizes.append(len(found))
        rows += found
        loader.close()
    assert sorted(rows) == list(range(101))
    assert max(sizes) - min(sizes) <= 1


def test_processes_go_on_from_the_state_of_the_first_and_end_together(many: Path) -> None:
    """As in Lightning, whose first process saves the checkpoint; 101 rows are 51 and 50."""
    loaders = [
        ActivationLoader(many, "fc", 3, rank=rank, world_size=2, drop_last=True, **SMALL_RUNS)
        for rank in range(2)
    ]
    expected = [torch.stack([batch.rows for batch in loader]) for loader in loaders]
    assert [len(rows) for rows in expected] == [len(loader) for loader in loaders] == [16, 16]
    assert len(set(torch.cat(expected).flatten().tolist())) == 96
    first = ActivationLoader(many, "fc", 3, rank=0, world_size=2, drop_last=True, **SMALL_RUNS)
    batches = iter(first)
    for _ in range(5):
        next(batches)
    for loader, rows in zip(loaders, expected, strict=True):
        loader.load_state_dict(first.state_dict())
        assert torch.equal(torch.stack([batch.rows for batch in loader]), rows[5:])
    for each in (*loaders, first):
        each.close()


@pytest.mark.parametrize("shuffle", ["blocks", "full"])
def test_a_killed_epoch_goes_on_with_the_batches_that_were_left(many: Path, shuffle: str) -> None:
    def loader() -> ActivationLoader:
        return ActivationLoader(many, ["fc", "conv1"], 8, shuffle=shuffle, **SMALL_RUNS)

    whole = loader()
    whole.epoch = 1
    expected = epoch(whole)
    for done in range(len(expected)):
        first = loader()
        first.epoch = 1
        batches = iter(first)
        for _ in range(done):
            next(batches)
        state = first.state_dict()
        assert state["batches"] == done
        batches.close()  # type: ignore[attr-defined]
        again = loader()
        again.load_state_dict(state)
        left = epoch(again)
        assert len(left) == len(expected) - done
        for one, other in zip(left, expected[done:], strict=True):
            assert torch.equal(one.rows, other.rows)
            assert torch.equal(one.activations["conv1"], other.activations["conv1"])
        state = again.state_dict()
        assert (state["epoch"], state["batches"]) == (2, 0)
        for each in (first, again):
            each.close()
    other = ActivationLoader(many, "fc", 8, seed=3)
    with pytest.raises(ConfigError, match=r"saved with other options \(seed: 0 → 3; "):
        other.load_state_dict(whole.state_dict())
    for each in (whole, other):
        each.close()


def test_numbers_of_numpy_are_numbers_and_a_state_is_json(many: Path) -> None:
    one, two = np.int64(1), np.int64(2)
    loader = ActivationLoader(many, "fc", np.int64(8), seed=one, rank=one, world_size=two)
    again = ActivationLoader(many, "fc", 8, seed=1, rank=1, world_size=2)
    batches = iter(loader)
    next(batches)
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert torch.equal(next(iter(again)).rows, next(batches).rows)
    state = loader.state_dict()
    for damaged in ({}, None, [], {**state, "epoch": None}, {**state, "batches": "1"},
                    {"options": {1}}, {**state, "batches": -1},
                    {**state, "batches": len(loader) + 1}):  # fmt: skip
        with pytest.raises(ConfigError, match="state"):
            again.load_state_dict(damaged)  # type: ignore[arg-type]
    for each in (loader, again):
        each.close()


def test_an_iteration_that_was_left_is_followed_by_the_next_epoch(many: Path) -> None:
    """As in PyTorch: a look at the first batch, or a validation that stops early, costs nothing."""
    loader = ActivationLoader(many, "fc", 8, shuffle="none")
    for _ in range(2):
        assert next(iter(loader)).rows.tolist() == list(range(8))
    assert torch.cat([batch.rows for batch in loader]).tolist() == list(range(101))
    shuffled = ActivationLoader(many, "fc", 8, **SMALL_RUNS)
    other = ActivationLoader(many, "fc", 8, **SMALL_RUNS)
    first = next(iter(shuffled)).rows
    second = torch.cat([batch.rows for batch in shuffled])
    epochs = [torch.cat([batch.rows for batch in other]) for _ in range(2)]
    assert torch.equal(first, epochs[0][:8])
    assert torch.equal(second, epochs[1])
    for each in (loader, shuffled, other):
        each.close()


def test_an_epoch_ends_with_its_last_batch(many: Path) -> None:
    """Also if nothing asks for another, as in `zip(range(len(loader)), loader)`."""
    loader = ActivationLoader(many, "fc", 8, **SMALL_RUNS)
    rows = [
        torch.cat([batch.rows for _, batch in zip(range(len(loader)), loader, strict=False)])
        for _ in range(3)
    ]
    assert [sorted(epoch.tolist()) for epoch in rows] == [list(range(101))] * 3
    assert len({tuple(epoch.tolist()) for epoch in rows}) == 3
    again = ActivationLoader(many, "fc", 8, **SMALL_RUNS)
    for _ in zip(range(len(again)), again, strict=False):
        state = again.state_dict()  # also saved with the last batch, as Lightning does
    resumed = ActivationLoader(many, "fc", 8, **SMALL_RUNS)
    resumed.load_state_dict(state)
    assert torch.equal(torch.cat([batch.rows for batch in resumed]), rows[1])
    for each in (loader, again, resumed):
        each.close()


@pytest.mark.parametrize("shuffle", ["blocks", "none"])
def test_every_epoch_draws_other_positions(many: Path, shuffle: str) -> None:
    with Archive.open(many) as archive:
        maps = archive.layers["conv1"][:]
        labels = np.array([sample.label for sample in archive.samples])
    flat = maps.reshape(*maps.shape[:2], -1)
    loader = ActivationLoader(many, "conv1", 8, positions=5, shuffle=shuffle, **SMALL_RUNS)
    drawn = []
    for _ in range(2):
        places = {}
        for batch in loader:
            rows, where = batch.rows.numpy(), batch.positions["conv1"].numpy()
            assert batch.activations["conv1"].shape == (len(rows), maps.shape[1])
            np.testing.assert_array_equal(batch.activations["conv1"], flat[rows, :, where])
            np.testing.assert_array_equal(batch.labels, labels[rows])
            for row in set(rows.tolist()):
                places[row] = where[rows == row].tolist()
        assert len(places) == 101
        assert all(len(set(one)) == 5 for one in places.values())
        drawn.append(places)
    assert drawn[0] != drawn[1]
    loader.close()
    with pytest.raises(ConfigError, match="positions: layer fc has only 1 per sample"):
        ActivationLoader(many, "fc", 8, positions=2)


@pytest.mark.parametrize("shuffle", ["blocks", "none"])
def test_positions_of_an_archive_of_positions_are_places_in_the_map(
    many: Path, shuffle: str, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    extract(tiny_extraction(
        few, dataset=Synthetic(samples=101, height=20, width=24),
        storage=Storage(shard_samples=20), layers=LayerSelector(include=("conv1", "fc")),
        loader=Loader(batch_size=4, num_workers=0), reduction=RandomPositions(count=9, seed=2),
    ))  # fmt: skip
    with Archive.open(many) as archive:
        maps = archive.layers["conv1"][:]
    flat = maps.reshape(*maps.shape[:2], -1)
    with Archive.open(few) as archive:
        stored = archive.layers["conv1"].position
    loader = ActivationLoader(few, "conv1", 8, positions=3, shuffle=shuffle, **SMALL_RUNS)
    seen = 0
    for batch in loader:
        rows, where = batch.rows.numpy(), batch.positions["conv1"].numpy()
        np.testing.assert_array_equal(batch.activations["conv1"], flat[rows, :, where])
        assert all(place in stored[row] for row, place in zip(rows, where, strict=True))
        seen += len(rows)
    assert seen == 101 * 3
    loader.close()
    loader = ActivationLoader(few, ["conv1", "fc"], 8, shuffle=shuffle, **SMALL_RUNS)
    for batch in loader:
        rows = batch.rows.numpy()
        assert list(batch.positions) == ["conv1"]
        np.testing.assert_array_equal(batch.positions["conv1"], stored[rows])
        expected = np.take_along_axis(flat[rows], stored[rows][:, None], axis=2).transpose(0, 2, 1)
        np.testing.assert_array_equal(batch.activations["conv1"], expected)
    loader.close()


def test_options_out_of_range_are_one_line(many: Path) -> None:
    for options, text in (
        ({"shuffle": "random"}, "shuffle: unknown value 'random'; choose from: blocks, full, none"),
        ({"rank": 2, "world_size": 2}, "^rank: must be below world_size=2, got 2$"),
        ({"seed": -1}, "^seed: must be at least 0, got -1$"),
        ({"seed": 1.5}, "^seed: must be a whole number, got 1.5$"),
        ({"seed": None}, "^seed: must be a whole number, got None$"),
        ({"batch_size": 2.5}, "^batch_size: must be a whole number, got 2.5$"),
        ({"images_per_batch": 8.0}, "^images_per_batch: must be a whole number, got 8.0$"),
        ({"positions": -1}, "^positions: must be at least 0, got -1$"),
    ):
        with pytest.raises(ConfigError, match=text):
            ActivationLoader(many, "fc", **{"batch_size": 8, **options})  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sets(st.integers(0, 60), min_size=1), run=st.integers(1, 12),
    reservoir=st.integers(1, 40), count=st.integers(1, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_rows_come_once_over_all_parts(
    rows: set[int], run: int, reservoir: int, count: int, seed: int
) -> None:
    there = np.array(sorted(rows))
    found: list[int] = []
    for index in range(count):
        order = block_shuffled(there, run, reservoir, (seed,), (index, count))
        found += order.rows.tolist()
        inside = np.full(order.size, -1)
        left: list[int] = []
        for step in order.steps:
            if step.leaving:
                left += inside[step.slots].tolist()
            inside[step.slots] = step.rows
        left += inside[order.last].tolist()
        assert left == order.rows.tolist()
    assert sorted(found) == there.tolist()


def test_blocks_are_read_in_runs_and_mixed() -> None:
    rows = np.arange(10_000)
    order = block_shuffled(rows, 100, 2000, (0, 0), (0, 1))
    assert sorted(order.rows.tolist()) == rows.tolist()
    assert order.size <= 2000 + 100
    assert all(len(step.rows) == 100 and (np.diff(step.rows) == 1).all() for step in order.steps)
    runs_per_batch = [len(set(order.rows[at : at + 100] // 100)) for at in range(0, 10_000, 100)]
    assert np.mean(runs_per_batch) > 15  # of the 20 runs that the reservoir holds


def test_a_probe_learns_as_much_from_blocks_as_from_a_full_permutation(tmp_path: Path) -> None:
    """The hard case: samples sorted by label, a small reservoir."""
    chance = np.random.default_rng(0)
    labels = [0] * 300 + [1] * 300
    images = [
        np.clip(chance.normal(80 + 80 * label, 25, (16, 16, 3)), 0, 255).astype(np.uint8)
        for label in labels
    ]
    items = list(zip(images, labels, strict=True))
    dataset = FromSequence(items=items)
    extract(tiny_extraction(
        tmp_path / "a", dataset=dataset, layers=LayerSelector(include=("conv2",)),
        storage=Storage(shard_samples=100), loader=Loader(batch_size=50, num_workers=0),
    ))  # fmt: skip

    def accuracy(shuffle: str) -> float:
        torch.manual_seed(0)
        loader = ActivationLoader(
            tmp_path / "a", "conv2", 10, shuffle=shuffle, run_bytes=20_000, reservoir=12
        )
        with Archive.open(tmp_path / "a") as archive:
            everything = torch.from_numpy(archive.layers["conv2"][:]).flatten(1)
        mean, std = everything.mean(0), everything.std(0) + 1e-3
        probe = torch.nn.Linear(everything.shape[1], 2)
        optimizer = torch.optim.Adam(probe.parameters(), lr=0.003)
        for _ in range(6):
            for batch in loader:
                optimizer.zero_grad()
                scores = probe((batch.activations["conv2"].flatten(1) - mean) / std)
                torch.nn.functional.cross_entropy(scores, batch.labels).backward()
                optimizer.step()
        with torch.no_grad():
            found = probe((everything - mean) / std).argmax(1).numpy()
        loader.close()
        return float((found == np.array(labels)).mean())

    full, blocks = accuracy("full"), accuracy("blocks")
    assert full > 0.8
    assert abs(full - blocks) <= 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_batches_are_cast_as_torch_casts(many: Path, dtype: str) -> None:
    with Archive.open(many) as archive:
        stored = torch.from_numpy(archive.layers["conv1"][:])
    loader = ActivationLoader(many, "conv1", 8, dtype=dtype, device=torch.device("cpu"))
    for batch in loader:
        assert torch.equal(batch.activations["conv1"], stored[batch.rows].to(getattr(torch, dtype)))
    loader.close()
    scaled = ActivationLoader(many, "conv1", 8, dtype=dtype, normalize="rms")
    plain = ActivationLoader(many, "conv1", 8, normalize="rms")
    for one, other in zip(scaled, plain, strict=True):
        expected = other.activations["conv1"].to(getattr(torch, dtype))
        assert torch.equal(one.activations["conv1"], expected)
    for each in (scaled, plain):
        each.close()


@pytest.mark.parametrize("other", [0, np.nan, np.inf])
def test_values_that_float16_cannot_hold_are_an_error(tmp_path: Path, other: float) -> None:
    """Not infinite; values that are infinite in the archive stay so."""
    values = np.zeros((6, 3), np.float32)
    values[2] = [65504, -65504, other]
    path = archive_of(tmp_path / "fits", {"x": values})
    loader = ActivationLoader(path, "x", 2, dtype="float16", shuffle="none")
    stored = torch.cat([batch.activations["x"] for batch in loader])
    np.testing.assert_array_equal(stored, values.astype(np.float16))
    values[4, 1] = -70000
    path = archive_of(tmp_path / "beyond", {"x": values})
    loader = ActivationLoader(path, "x", 6, dtype="float16")
    message = "dtype: x reaches 70000, but float16 ends at 65504; use bfloat16 or float32"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dtype": "int8"}, "dtype: unknown value 'int8'; choose from: float32, bfloat16, float16"),
        ({"device": "gpu"}, "device: 'gpu' is not available; use cpu"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not available"),
    ],
)
def test_unknown_dtypes_and_devices(many: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ActivationLoader(many, "fc", 8, **options)


def test_memory_is_reused_only_when_nothing_refers_to_it() -> None:
    memory, kind = ReusedMemory(), np.dtype("float32")

    def address_of_new() -> int:
        return memory.take((3, 2**20), kind).ctypes.data

    array = memory.take((3, 2**20), kind)
    address = array.ctypes.data
    array[:] = 7
    view, tensor = array[1, 5:9], torch.from_numpy(array).flatten()[:4].reshape(2, 2)
    del array
    assert address_of_new() != address
    del view
    assert address_of_new() != address
    assert tensor.tolist() == [[7, 7], [7, 7]]
    del tensor
    assert address in {memory.take((3, 2**20), kind).ctypes.data, address_of_new()}
    assert memory.take((2, 2**20), kind).shape == (2, 2**20)
