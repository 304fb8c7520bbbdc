"""Vectors for training: kinds of tokens and filters of samples, against NumPy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from pipeline import ActivationLoader, Archive
from pipeline.common.errors import ConfigError
from scripts.synthetic_archive import layer_of, write_archive
from tests.conftest import REPOSITORY

COUNT, PREFIX, GRID, CHANNELS = 30, 3, (2, 3), 5
SMALL_RUNS = {"run_bytes": 2000, "reservoir": 2}
RANDOM = np.random.default_rng(4)
TOKENS = RANDOM.normal(1, 3, (COUNT, PREFIX + 6, CHANNELS)).astype(np.float32)
NARROW = TOKENS[..., :2].transpose(0, 2, 1).astype(np.float16)  # channel, token
MAPS = RANDOM.normal(-2, 1, (COUNT, 4, *GRID)).astype(np.float32)
ATTENTION = RANDOM.random((COUNT, 2, 9, 9)).astype(np.float32)
LABELS = np.arange(COUNT) % 4
VIT = {"grid": GRID, "prefix_tokens": PREFIX, "class_token": True}
KINDS = {"patch": range(3, 9), "class": range(1), "register": range(1, 3), "all": range(9)}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = {
        "tokens": layer_of(TOKENS, **VIT),
        "narrow": layer_of(NARROW, axes=("channel", "token"), **VIT),
        "registers": layer_of(TOKENS, **{**VIT, "class_token": False}),
        "maps": layer_of(MAPS),
        "vectors": layer_of(TOKENS[:, 0]),
        "attention": layer_of(
            ATTENTION, axes=("head", "query", "key"), grid=GRID, prefix_tokens=PREFIX,
            class_token=True,
        ),
    }  # fmt: skip
    ids = [f"{100 + row}" for row in range(COUNT)]
    return write_archive(
        tmp_path_factory.mktemp("vit") / "a", layers, ids, labels=LABELS.tolist(),
        names={0: "z\u00e9ro", 1: "one", 2: "two", 3: "three"}, skipped=ids[7:8], shards=3,
    )  # fmt: skip


def read(path: Path, layers: Any, batch_size: int = 4, **options: Any) -> dict[str, Any]:
    """Return the concatenated batches of an epoch; the batches are in the key `batches`."""
    loader = ActivationLoader(path, layers, batch_size, **SMALL_RUNS, **options)
    batches = list(loader)
    loader.close()
    keys = batches[0].activations
    return {
        "batches": batches, "rows": np.concatenate([batch.rows for batch in batches]),
        "labels": np.concatenate([batch.labels for batch in batches]),
        **{key: np.concatenate([batch.activations[key] for batch in batches]) for key in keys},
        "positions": {
            key: np.concatenate([batch.positions[key] for batch in batches])
            for key in batches[0].positions
        },
    }  # fmt: skip


@pytest.mark.parametrize("shuffle", ["blocks", "full", "none"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_vectors_are_the_tokens_of_a_kind(tokens: Path, kind: str, shuffle: str) -> None:
    layers = ["tokens", "narrow"]
    epoch = read(tokens, layers, tokens=kind, shuffle=shuffle)
    expected = KINDS[kind]
    order = epoch["rows"][:: len(expected)]
    assert sorted(order) == [row for row in range(COUNT) if row != 7]
    np.testing.assert_array_equal(epoch["rows"], np.repeat(order, len(expected)))
    np.testing.assert_array_equal(epoch["labels"], LABELS[epoch["rows"]])
    tokens_of = {"tokens": TOKENS, "narrow": NARROW.transpose(0, 2, 1)}
    for key in layers:
        positions = np.tile(expected, len(order))
        np.testing.assert_array_equal(epoch["positions"][key], positions - PREFIX)
        assert epoch[key].dtype == tokens_of[key].dtype
        np.testing.assert_array_equal(epoch[key], tokens_of[key][epoch["rows"], positions])


@pytest.mark.parametrize("kind", list(KINDS))
def test_positions_are_drawn_from_the_tokens_of_a_kind(tokens: Path, kind: str) -> None:
    count = min(2, len(KINDS[kind]))
    drawn = [read(tokens, "tokens", tokens=kind, positions=count, seed=seed) for seed in range(9)]
    seen = set()
    for epoch in drawn:
        positions = epoch["positions"]["tokens"] + PREFIX
        np.testing.assert_array_equal(epoch["tokens"], TOKENS[epoch["rows"], positions])
        seen |= set(positions.tolist())
    assert seen == set(KINDS[kind])


def test_other_layers_have_the_kinds_that_they_say(tokens: Path) -> None:
    epoch = read(tokens, "registers", tokens="register")
    np.testing.assert_array_equal(
        epoch["registers"], TOKENS[epoch["rows"], np.tile(range(3), COUNT - 1)]
    )
    flat = MAPS.reshape(COUNT, 4, -1)
    for kind in ("patch", "all"):
        epoch = read(tokens, "maps", tokens=kind)
        where = epoch["positions"]["maps"]
        np.testing.assert_array_equal(epoch["maps"], flat[epoch["rows"], :, where])
    epoch = read(tokens, ["tokens", "maps"], tokens="patch")  # aligned: the same place
    assert (epoch["positions"]["tokens"] == epoch["positions"]["maps"]).all()
    epoch = read(tokens, ["vectors", "attention"], tokens="all", positions=1)
    np.testing.assert_array_equal(epoch["vectors"], TOKENS[epoch["rows"], 0])


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ("maps", {"shuffle": True}, "shuffle: unknown value True; choose from: blocks, full, none"),
        ("maps", {"dtype": torch.float16},
         "dtype: unknown value torch.float16; did you mean float16 or bfloat16?"),
        ("maps", {"memory": "1GB"}, "memory: must be a whole number, got '1GB'"),
        ("maps", {"num_threads": 0}, "num_threads: must be at least 1, got 0"),
        ([5], {}, "layers: no layer 5; choose from: tokens, narrow, registers, maps, vectors, "
         "attention"),
        ("tokens", {"tokens": "cls"},
         "tokens: unknown value 'cls'; did you mean class?"),
        ("registers", {"tokens": "class"},
         "tokens: layer registers has no class tokens; use patch, register, all"),
        ("maps", {"tokens": "register"},
         "tokens: layer maps has no register tokens; use patch, all"),
        ("vectors", {"tokens": "patch"}, "tokens: layer vectors has no patch tokens; use all"),
        ("attention", {"tokens": "class"}, "tokens: layer attention has no class tokens; use all"),
        ("tokens", {"tokens": "register", "positions": 3},
         "positions: layer tokens has only 2 per sample"),
        (["tokens", "maps"], {"tokens": "all"},
         "tokens: the layers differ in vectors per sample (tokens 9, maps 6); set positions"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(
    tokens: Path, layers: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        ActivationLoader(tokens, layers, 4, **options)


@pytest.mark.parametrize(
    ("options", "selected"),
    [
        ({"labels": [1, 3]}, lambda row: row % 4 in (1, 3)),
        ({"labels": "two"}, lambda row: row % 4 == 2),
        ({"labels": np.int64(2)}, lambda row: row % 4 == 2),
        ({"labels": np.array([0, 2])}, lambda row: row % 2 == 0),
        ({"labels": torch.tensor([0, 2])}, lambda row: row % 2 == 0),
        ({"labels": 2.0}, lambda row: row % 4 == 2),
        ({"rows": torch.tensor([-1, 2])}, lambda row: row in (2, 29)),
        ({"labels": 3, "rows": range(20)}, lambda row: row % 4 == 3 and row < 20),
        ({"rows": np.arange(COUNT) > 20}, lambda row: row > 20),
        ({"rows": (-1, 2)}, lambda row: row in (2, 29)),
        ({"rows": slice(3, 9)}, lambda row: 3 <= row < 9),
        ({"ids": [104, 121]}, lambda row: row in (4, 21)),
        ({"ids": ["104", "107", "121"]}, lambda row: row in (4, 7, 21)),
        ({"ids": "104"}, lambda row: row == 4),
        ({"ids": 104}, lambda row: row == 4),
        ({"ids": lambda name: name >= "111", "labels": ["ze\u0301ro", 1]},
         lambda row: row >= 11 and row % 4 < 2),
    ],
)  # fmt: skip
def test_filters_select_samples(tokens: Path, options: dict[str, Any], selected: Any) -> None:
    epoch = read(tokens, "vectors", **options)
    assert sorted(epoch["rows"]) == [row for row in range(COUNT) if selected(row) and row != 7]
    np.testing.assert_array_equal(epoch["vectors"], TOKENS[epoch["rows"], 0])
    np.testing.assert_array_equal(epoch["labels"], LABELS[epoch["rows"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0, 4]}, "labels: no stored sample has label 4; "),
        ({"labels": "thre"}, "labels: no stored sample has label 'thre'; did you mean three?"),
        ({"labels": [[0]]}, "labels: no stored sample has label [0]; "),
        ({"labels": None.__class__}, "labels: no stored sample has label <class 'NoneType'>; "),
        ({"labels": [""]}, "labels: no stored sample has label ''; "),
        ({"ids": ["103", "3"]}, "ids: no sample '3'; "),
        ({"ids": "107"}, "rows, labels, ids: together they select no stored sample"),  # skipped
        ({"labels": [0], "rows": [1]}, "rows, labels, ids: together they select no stored sample"),
        ({"labels": LABELS == 2}, "labels: no stored sample has label False; "),  # a mask
        ({"ids": [12, 4]}, "ids: no sample '12'; "),  # not rows
        ({"rows": [3, 30]}, "rows: index 30 is out of range for axis 0 with size 30"),
        ({"rows": [True, False]}, "rows: a mask needs 30 values, got 2"),
        ({"rows": [1.5]}, "rows: the sample axis takes a list of row numbers or a mask, got an"),
        ({"rows": iter([3])}, "rows: an index takes integers, slices"),
        ({"rows": {3, 4}}, "rows: an index takes integers, slices"),
        ({"rows": []}, "rows, labels, ids: together they select no stored sample"),
        ({"ids": []}, "rows, labels, ids: together they select no stored sample"),
    ],
)  # fmt: skip
def test_filters_of_nothing_are_one_line(
    tokens: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}[^\n]*$"):
        ActivationLoader(tokens, "vectors", 4, **options)


@pytest.mark.parametrize("shuffle", ["blocks", "full", "none"])
def test_a_filtered_epoch_resumes(tokens: Path, shuffle: str) -> None:
    def loader(*labels: int) -> ActivationLoader:
        return ActivationLoader(
            tokens, "tokens", 3, labels=labels, shuffle=shuffle, tokens="patch", positions=4,
            normalize="rms", rank=1, world_size=2, **SMALL_RUNS,
        )  # fmt: skip

    whole = loader(0, 2)
    expected = list(whole)
    for done in range(len(expected)):
        first, again = loader(0, 2), loader(2, 0)
        batches = iter(first)
        for _ in range(done):
            next(batches)
        again.load_state_dict(first.state_dict())
        for one, other in zip(again, expected[done:], strict=True):
            for key in ("labels", "rows"):
                np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
            np.testing.assert_array_equal(one.positions["tokens"], other.positions["tokens"])
            np.testing.assert_array_equal(one.activations["tokens"], other.activations["tokens"])
        first.close()
        again.close()
    other_rows = loader(1, 2)  # as many samples, but others
    with pytest.raises(ConfigError, match=r"saved with other options \(rows: \S+ → \S+\)$"):
        other_rows.load_state_dict(whole.state_dict())


@pytest.mark.parametrize("shuffle", ["blocks", "full", "none"])
@pytest.mark.parametrize("options", [{"positions": 4}, {"tokens": "patch"}])
def test_a_batch_mixes_vectors_of_many_samples(
    tokens: Path, shuffle: str, options: dict[str, Any]
) -> None:
    def loader() -> ActivationLoader:
        return ActivationLoader(
            tokens, ["tokens", "narrow"], 3, images_per_batch=9, shuffle=shuffle, **options,
            **SMALL_RUNS,
        )  # fmt: skip

    count = options.get("positions", 6)
    whole = loader()
    epochs = [list(whole), list(whole)]
    for epoch in epochs:
        # 29 samples: 3 groups of 9 samples and 3 batches each, and the remaining 2 samples
        assert [len(batch.rows) for batch in epoch] == [3 * count] * 9 + [2 * count]
        for number, batch in enumerate(epoch):
            samples, times = np.unique(batch.rows, return_counts=True)
            assert len(samples) == (9 if number < 9 else 2)
            assert times.max() - times.min() <= 1
            assert batch.entropy == pytest.approx(entropy(times))
            rows, where = batch.rows.numpy(), batch.positions["tokens"].numpy()
            np.testing.assert_array_equal(batch.labels, LABELS[rows])
            np.testing.assert_array_equal(batch.activations["tokens"], TOKENS[rows, PREFIX + where])
            np.testing.assert_array_equal(where, batch.positions["narrow"])
            np.testing.assert_array_equal(
                batch.activations["narrow"], NARROW[rows, :, PREFIX + where]
            )
        seen = [
            pair for batch in epoch
            for pair in zip(batch.rows.tolist(), batch.positions["tokens"].tolist(), strict=True)
        ]  # fmt: skip
        assert len(seen) == len({*seen}) == 29 * count
    orders = [np.concatenate([batch.positions["tokens"] for batch in epoch]) for epoch in epochs]
    assert (orders[0] != orders[1]).any()
    for done in range(10):
        first, again = loader(), loader()
        batches = iter(first)
        for _ in range(done):
            next(batches)
        again.load_state_dict(first.state_dict())
        for one, other in zip(again, epochs[0][done:], strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_array_equal(one.activations["tokens"], other.activations["tokens"])
        first.close()
        again.close()
    whole.close()


@pytest.mark.parametrize(
    ("options", "images", "most"),
    [({}, 6, 3), ({"positions": 2}, 9, 6), ({"positions": 2}, 4, 6), ({"positions": 4}, 0, 12)],
)
def test_images_per_batch_out_of_range(
    tokens: Path, options: dict[str, Any], images: int, most: int
) -> None:
    with pytest.raises(ConfigError, match=f"batch_size, at most {most}, .*; got {images}$"):
        ActivationLoader(tokens, "tokens", 3, images_per_batch=images, **options)


@pytest.mark.parametrize("layer", ["tokens", "narrow", "maps", "vectors", "attention"])
def test_the_linear_probe_pools_over_positions(
    tokens: Path, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without prefix tokens, as the archive's means, by which the script standardises."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    from linear_probe import pooled

    with Archive.open(tokens) as archive:
        stored = archive.layers[layer]
        rows = np.flatnonzero(archive.stored)
        means = pooled(torch.from_numpy(stored[rows]), stored.entry)
        np.testing.assert_allclose(means, stored.sample_mean[rows], rtol=1e-5, atol=1e-6)
