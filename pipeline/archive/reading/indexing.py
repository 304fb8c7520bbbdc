"""Indexing: NumPy's basic indices over all axes of a layer, as rows and a part of each.

Also lists and masks, on the sample axis only. Nothing is read here.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

_TAKES = "an index takes integers, slices and `...`, on the sample axis also a list or a mask"


@dataclass(frozen=True)
class RowIndex:
    """What an index asks for.

    Attributes:
        rows: row numbers, in the order that was asked for.
        single: whether a single row was asked for, which has no sample axis.
        part: per further axis an integer or a slice.
    """

    rows: Sequence[int]
    single: bool
    part: tuple[int | slice, ...]

    def runs(self) -> list[tuple[int, int]]:
        """Return the rows as ranges of consecutive ones.

        >>> RowIndex([5, 6, 2, 3, 4, 9], False, ()).runs()
        [(5, 7), (2, 5), (9, 10)]
        """
        numbered = enumerate(self.rows)
        runs = [[row for _, row in run] for _, run in groupby(numbered, lambda p: p[1] - p[0])]
        return [(run[0], run[-1] + 1) for run in runs]


def parse(index: object, shape: tuple[int, ...]) -> RowIndex:
    """Return what an index of an array of `shape` asks for.

    Raises:
        IndexError: when it is none, or out of range; one line that says what is taken.
    """
    words = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, word in enumerate(words) if word is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index takes one `...` only")
    if dots:
        left_out = len(shape) - (len(words) - 1)
        words[dots[0] : dots[0] + 1] = [slice(None)] * max(0, left_out)
    if len(words) > len(shape):
        raise IndexError(f"too many indices: {len(words)} for the {len(shape)} axes of {shape}")
    words += [slice(None)] * (len(shape) - len(words))
    rows, single = _rows(words[0], shape[0])
    part: list[int | slice] = []
    for axis, (word, size) in enumerate(zip(words[1:], shape[1:], strict=True), start=1):
        if isinstance(word, slice):
            _range(word, size)
            part.append(word)
        else:
            part.append(_integer(word, size, axis))
    return RowIndex(rows, single, tuple(part))


def _rows(word: object, size: int) -> tuple[Sequence[int], bool]:
    if isinstance(word, slice):
        return _range(word, size), False
    if isinstance(word, (list, np.ndarray, range)) and np.ndim(np.asarray(word, object)) > 0:
        chosen = np.asarray(word)
        if chosen.ndim != 1 or (chosen.dtype.kind not in "iub" and chosen.size):
            raise IndexError(
                f"the sample axis takes a list of row numbers or a mask, got an array of "
                f"{chosen.dtype} with shape {chosen.shape}"
            )
        if chosen.dtype == bool:
            if len(chosen) != size:
                raise IndexError(f"a mask needs {size} values, got {len(chosen)}")
            chosen = np.flatnonzero(chosen)
        return [_integer(row, size, 0) for row in chosen.tolist()], False
    return [_integer(word, size, 0)], True


def _range(word: slice, size: int) -> range:
    try:
        return range(size)[word]
    except (TypeError, ValueError) as error:
        raise IndexError(f"{word}: {error}") from None


def _integer(word: object, size: int, axis: int) -> int:
    if isinstance(word, (bool, np.bool_)) or word is None:
        raise IndexError(f"{_TAKES}; got {word!r}")
    try:
        number = operator.index(word)  # type: ignore[arg-type]
    except TypeError:
        raise IndexError(f"{_TAKES}; got a {type(word).__name__} on axis {axis}") from None
    if not -size <= number < size:
        raise IndexError(f"index {number} is out of range for axis {axis} with size {size}")
    return number % size if size else number
