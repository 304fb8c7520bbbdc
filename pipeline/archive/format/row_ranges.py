"""Contiguous ranges of rows: of shards, and of jobs that share the work."""

from itertools import pairwise


def shard_ranges(samples: int, batch_size: int, shards: int) -> list[tuple[int, int]]:
    """Return contiguous row ranges of nearly equal size, in multiples of the batch size.

    >>> shard_ranges(10, 2, 3)
    [(0, 2), (2, 6), (6, 10)]
    """
    batches = -(-samples // batch_size)
    shards = max(1, min(shards, batches))
    edges = [min(samples, batch_size * (batches * i // shards)) for i in range(shards + 1)]
    return list(pairwise(edges))


def part_of(count: int, index: int, parts: int) -> range:
    """Return part `index` of `count` items, split into `parts` contiguous ranges.

    >>> [list(part_of(5, i, 2)) for i in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return range(count * index // parts, count * (index + 1) // parts)
