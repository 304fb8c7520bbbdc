"""NumPy's basic indexing over all axes of a layer; lists and masks on the sample axis only."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pipeline.common.errors import ConfigError

_TAKES = "an index takes integers, slices and `...`, and on the sample axis also a list or a mask"


@dataclass(frozen=True)
class RowIndex:
    """A parsed index.

    Attributes:
        rows: row numbers in the requested order.
        single: whether the sample axis was indexed by an integer, which removes it.
        part: an integer or a slice for each further axis.
    """

    rows: Sequence[int]
    single: bool
    part: tuple[int | slice, ...]

    def runs(self) -> list[tuple[int, int]]:
        """Return the rows as half-open ranges of consecutive rows.

        >>> RowIndex([5, 6, 2, 3, 4, 9], False, ()).runs()
        [(5, 7), (2, 5), (9, 10)]
        """
        numbered = enumerate(self.rows)
        runs = [[row for _, row in run] for _, run in groupby(numbered, lambda p: p[1] - p[0])]
        return [(run[0], run[-1] + 1) for run in runs]


def parse(index: object, shape: tuple[int, ...]) -> RowIndex:
    """Parse an index of an array of `shape`.

    Raises:
        IndexError: when the index is unsupported or out of range.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    ellipses = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(ellipses) > 1:
        raise IndexError("an index can contain only one `...`")
    if ellipses:
        omitted = len(shape) - (len(items) - 1)
        items[ellipses[0] : ellipses[0] + 1] = [slice(None)] * max(0, omitted)
    if len(items) > len(shape):
        raise IndexError(f"too many indices: {len(items)} for the {len(shape)} axes of {shape}")
    items += [slice(None)] * (len(shape) - len(items))
    rows, single = _rows(items[0], shape[0])
    part: list[int | slice] = []
    for axis, (item, size) in enumerate(zip(items[1:], shape[1:], strict=True), start=1):
        if isinstance(item, slice):
            _range(item, size)
            part.append(item)
        else:
            part.append(_integer(item, size, axis))
    return RowIndex(rows, single, tuple(part))


def row_numbers(rows: object, count: int) -> Sequence[int]:
    """Return rows of samples, given as numbers, a slice or a mask, of an archive of `count`.

    Raises:
        ConfigError: when a row does not exist, or they are something else.
    """
    try:
        return parse((rows,), (count,)).rows
    except IndexError as error:
        raise ConfigError(f"rows: {error}") from None


def _rows(item: object, size: int) -> tuple[Sequence[int], bool]:
    if isinstance(item, slice):
        return _range(item, size), False
    several = isinstance(item, (list, tuple, range)) or hasattr(item, "__array__")
    if several and np.ndim(np.asarray(item, object)) > 0:
        rows = np.asarray(item)
        if rows.ndim != 1 or (rows.dtype.kind not in "iub" and rows.size):
            raise IndexError(
                f"the sample axis takes a list of row numbers or a mask, got an array of "
                f"{rows.dtype} with shape {rows.shape}"
            )
        if rows.dtype == bool:
            if len(rows) != size:
                raise IndexError(f"a mask needs {size} values, got {len(rows)}")
            rows = np.flatnonzero(rows)
        return [_integer(row, size, 0) for row in rows.tolist()], False
    return [_integer(item, size, 0)], True


def _range(item: slice, size: int) -> range:
    try:
        return range(size)[item]
    except (TypeError, ValueError) as error:
        raise IndexError(f"{item}: {error}") from None


def _integer(item: object, size: int, axis: int) -> int:
    if isinstance(item, (bool, np.bool_)) or item is None:
        raise IndexError(f"{_TAKES}; got {item!r}")
    try:
        number = operator.index(item)  # type: ignore[arg-type]
    except TypeError:
        raise IndexError(f"{_TAKES}; got a {type(item).__name__} on axis {axis}") from None
    if not -size <= number < size:
        raise IndexError(f"index {number} is out of range for axis {axis} with size {size}")
    return number % size if size else number
