"""Positions that are drawn of each sample: the same in any order of samples, and on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.int64]]


def draw(seed: Sequence[int], rows: Sequence[int], of: int, count: int) -> Array:
    """Return `count` different positions out of `of` for each row, `(row, count)`.

    Args:
        seed: of the draw.
        rows: rows in the archive; each has a stream of its own.
        of: how many there are.
        count: how many are drawn, `of` at most.
    """
    drawn = [np.random.default_rng([*seed, row]).choice(of, count, replace=False) for row in rows]
    return np.array(drawn, np.int64).reshape(len(rows), count)
