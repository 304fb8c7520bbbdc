"""Random positions per sample, independent of the sample order and the machine."""

from collections.abc import Sequence

import numpy as np

from pipeline.common.arrays import Array


def draw(seed: Sequence[int], rows: Sequence[int], of: int, count: int) -> Array:
    """Return `count` distinct positions out of `of` for each row, `(row, count)`.

    Each row of the archive has its own random stream.
    """
    positions = [
        np.random.default_rng([*seed, row]).choice(of, count, replace=False) for row in rows
    ]
    return np.array(positions, np.int64).reshape(len(rows), count)
