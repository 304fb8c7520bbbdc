"""Rows that a program derives: any arrays, as stored types, checked against an archive."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.archive.format.stored_type import BFLOAT16
from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, plural

_BLOCK_BYTES = 16 * 2**20


class RowBlock(NamedTuple):
    """Rows of consecutive stored samples.

    Attributes:
        values: `(sample, …)` float16 or float32, in memory of their own.
        dtype: stored type.
        source_dtype: type that the program gave.
    """

    values: Array
    dtype: str
    source_dtype: str


def row_blocks(rows: Any, source: Archive) -> Iterator[RowBlock]:
    """Yield the rows (see `add_layer`) of an archive's stored samples in blocks that are not empty.

    Raises:
        ConfigError: when the rows are no numbers, or their number, shape or type varies.
    """
    stored = int(source.stored.sum())
    return _checked(_blocks(rows, source, stored), stored)


def _blocks(rows: Any, source: Archive, stored: int) -> Iterator[RowBlock]:
    """Yield the rows of the stored samples in blocks."""
    if hasattr(rows, "tocsr") and rows.ndim == 2:  # SciPy's other sparse types do not slice
        rows = rows.tocsr()
    if not (hasattr(rows, "shape") and hasattr(rows, "__getitem__")):
        if not isinstance(rows, Iterable) or isinstance(rows, (str, bytes, Mapping)):
            raise ConfigError(f"rows: give an array or batches of them, not {type(rows).__name__}")
        yield from map(_block, rows)
        return
    count = rows.shape[0] if len(rows.shape) else 0
    if count not in (stored, len(source)):
        raise ConfigError(f"rows: {count}, but {source.path} has {plural(stored, 'stored sample')}")
    step = max(1, _BLOCK_BYTES // max(1, 4 * int(np.prod(rows.shape[1:]))))
    for start in range(0, count, step):
        block = _block(_slice(rows, start, min(start + step, count)))
        if count != stored:  # with skipped samples
            block = block._replace(values=block.values[source.stored[start : start + step]])
        yield block


def _slice(rows: Any, start: int, stop: int) -> Any:
    if isinstance(rows, torch.Tensor) and rows.layout is not torch.strided:
        return rows.to_sparse().narrow_copy(0, start, stop - start)
    return rows[start:stop]


def _block(values: Any) -> RowBlock:
    """Return values as float16 or float32, with the name of the stored and the given type."""
    kind, dtype = type(values).__name__, ""
    if hasattr(values, "toarray"):  # SciPy's sparse arrays
        values = values.toarray()
    try:
        if isinstance(values, torch.Tensor):
            values = values if values.layout is torch.strided else values.to_dense()
            if values.dtype is torch.bfloat16:
                values, dtype = values.float(), BFLOAT16
            values = values.numpy(force=True)
        array = np.asarray(values)
    except (TypeError, ValueError):  # a ragged list, a type that NumPy lacks
        array = np.array(None)
    if array.dtype.kind not in "biuf" or array.ndim < 2 or 0 in array.shape[1:]:
        raise ConfigError(
            f"rows: a batch must be numbers (sample, …), got {kind} of shape {array.shape}, "
            f"{array.dtype}"
        )
    source_dtype = dtype or str(array.dtype)
    dtype = dtype or ("float16" if array.dtype == np.float16 else "float32")
    try:
        with np.errstate(over="raise"):  # copied: the caller may reuse its memory
            array = array.astype(np.float16 if dtype == "float16" else np.float32, order="C")
    except FloatingPointError:
        raise ConfigError(f"rows: {source_dtype} values exceed float32's range") from None
    return RowBlock(array, dtype, source_dtype)


def _checked(blocks: Iterable[RowBlock], stored: int) -> Iterator[RowBlock]:
    """Yield the blocks that are not empty; their number of rows, shape and type must match."""
    count, first = 0, None
    for block in blocks:
        if not len(block.values):
            continue
        first = first or block
        shapes = block.values.shape[1:], first.values.shape[1:]
        if shapes[0] != shapes[1] or block.dtype != first.dtype:
            raise ConfigError(
                f"rows: {block.dtype}{shapes[0]} at stored sample {count}, but "
                f"{first.dtype}{shapes[1]} before"
            )
        count += len(block.values)
        if count > stored:
            raise ConfigError(
                f"rows: {count} or more, but the archive has {plural(stored, 'stored sample')}; "
                "give an array or batches, each (sample, …)"
            )
        yield block
    if count < stored:
        raise ConfigError(f"rows: {count}, but the archive has {plural(stored, 'stored sample')}")
