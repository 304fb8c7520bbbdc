"""Layers of an archive are indexed as NumPy arrays are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.shards import Shards


@pytest.mark.parametrize(
    "index",
    [
        0, -1, np.int64(2), slice(None), slice(1, 6, 2), slice(None, None, -1), slice(5, 1, -2),
        slice(9, 12), ..., (0, 2), (3, ..., 1), (slice(None), 0), (slice(2, 5), slice(0, 3), 4),
        (0, 1, 2, 3), ([0, 5], 1), ([5, 0, -1],), [True] * 3 + [False] * 4, np.arange(7) > 3,
        ([1, 2], slice(None), slice(None, None, 3)), (slice(None), slice(3, 0, -1), ...),
        ([], 1), (np.array([6, 6, 0]), ..., slice(1, 5, 2)), (..., slice(0, 0)), (slice(1, 1), 2),
        (..., -1, -2), range(1, 4), (),
    ],
    ids=repr,
)  # fmt: skip
def test_indexing_is_numpys(opened: Archive, index: Any) -> None:
    whole = np.stack(list(opened.layers["conv1"]))
    expected = whole[list(index) if isinstance(index, range) else index]
    found = opened.layers["conv1"][index]
    assert found.shape == expected.shape
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([5, 0, -1]), torch.tensor(3), torch.arange(7) > 3, pd.Series([6, 1]),
        pd.Series(range(7)) > 4,
    ],
    ids=repr,
)  # fmt: skip
def test_rows_of_other_libraries_are_those_of_numpy(opened: Archive, index: Any) -> None:
    layer = opened.layers["conv1"]
    np.testing.assert_array_equal(layer[index], layer[:][np.asarray(index)])


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (7, "index 7 is out of range for axis 0 with size 7"),
        ((0, 4), "index 4 is out of range for axis 1"),
        ((0, [1, 2]), "got a list on axis 1"),
        (None, "an index takes integers, slices and `...`"),
        (True, "an index takes integers"),
        (1.5, "got a float on axis 0"),
        ("conv1", "got a str on axis 0"),
        ((0, 0, 0, 0, 0), "too many indices: 5 for the 4 axes"),
        ((..., ...), "only one `...`"),
        ([[0, 1]], r"shape \(1, 2\)"),
        ([0.5], "row numbers or a mask"),
        ([True, False], "a mask needs 7 values, got 2"),
        (slice("a"), "slice"),
    ],
)
def test_anything_else_is_refused_in_one_line(opened: Archive, index: Any, text: str) -> None:
    with pytest.raises(IndexError, match=text) as caught:
        opened.layers["conv1"][index]
    assert "\n" not in str(caught.value)


def test_only_what_is_asked_for_is_read(opened: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = Shards.read
    monkeypatch.setattr(
        Shards, "read",
        lambda *given: asked.append((found := real(*given)).size) or found,
    )  # fmt: skip
    assert opened.layers["conv1"][[0, 5, 6], 2, 3:5].shape == (3, 2, 16)
    assert sum(asked) == 3 * 2 * 16
