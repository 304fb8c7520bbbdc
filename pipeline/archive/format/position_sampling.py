"""Random positions per sample, independent of the sample order and the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.int64]]


def draw(seed: Sequence[int], rows: Sequence[int], of: int, count: int) -> Array:
    """Return `count` distinct positions out of `of` for each row, `(row, count)`.

    Args:
        seed: of the random generator.
        rows: rows in the archive; each has its own random stream.
        of: number of positions.
        count: number of positions to draw, at most `of`.
    """
    drawn = [np.random.default_rng([*seed, row]).choice(of, count, replace=False) for row in rows]
    return np.array(drawn, np.int64).reshape(len(rows), count)
