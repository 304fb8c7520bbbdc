"""Sums of float64 arrays as pairs `high + low`, about 106 bits of significand.

Adding such sums in another order gives the same float64 at the end (but for ties at the 106th bit),
so that figures over a dataset do not depend on how it was divided into shards.

Source: Dekker (1971), A floating-point technique for extending the available precision; Knuth,
TAOCP 2, 4.2.2, theorem B (the error of a sum).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Pair = tuple[Array, Array]

_SPLIT = 2.0**27 + 1


def two_sum(a: Array, b: Array) -> Pair:
    """Return the rounded sum and its exact error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Array, b: Array) -> Pair:
    """Return the rounded product and its exact error; magnitudes below 1e150."""
    product = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _halves(a: Array) -> Pair:
    scaled = _SPLIT * a
    high = scaled - (scaled - a)
    return high, a - high


def add(one: Pair, two: Pair) -> Pair:
    """Return the sum of two pairs."""
    high, error = two_sum(one[0], two[0])
    low, rest = two_sum(one[1], two[1])
    high, error = two_sum(high, error + low)
    return two_sum(high, error + rest)


def total(high: Array, low: Array) -> Pair:
    """Return the sum over the first axis of pairs, each `(part, …)`; zeros for no parts.

    >>> total(np.array([[1e100], [1.0], [-1e100]]), np.zeros((3, 1)))[0]
    array([1.])
    """
    while len(high) > 1:  # halves are added to halves: few operations on long arrays
        half = len(high) // 2
        odd = (high[2 * half :], low[2 * half :])
        high, low = add((high[:half], low[:half]), (high[half : 2 * half], low[half : 2 * half]))
        high, low = np.concatenate([high, odd[0]]), np.concatenate([low, odd[1]])
    if not len(high):
        return np.zeros(high.shape[1:]), np.zeros(low.shape[1:])
    return high[0], low[0]
