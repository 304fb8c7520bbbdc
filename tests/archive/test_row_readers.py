"""Rows of datasets in a file: mapped or read, small or large, contiguous or compressed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from pipeline.archive.format.codec import compress
from pipeline.archive.format.file_bytes import FileBytes
from pipeline.archive.format.footer import Table
from pipeline.archive.format.rows import Checksums, CompressedRows, ContiguousRows, RowReader
from pipeline.common.errors import ArchiveError

START, OFFSET = 40, 24


def opened(path: Path, *, mapped: bool) -> FileBytes:
    source = FileBytes(path)
    if not mapped:
        source.mapped = None
    return source


def rows_in_a_file(path: Path, values: np.ndarray, *, mapped: bool, check: bool) -> RowReader:
    """Return what reads `values`, the rows from `START` of an archive on, out of a file."""
    sums = np.array([xxh3_64_intdigest(row.tobytes()) for row in values], np.uint64)
    checksums = Checksums(path, "rows", START, sums if check else None)
    if not path.exists():
        path.write_bytes(bytes(OFFSET) + values.tobytes())
    table = Table(shape=values.shape, dtype=values.dtype.name, extents=((OFFSET, values.nbytes),))
    return ContiguousRows(opened(path, mapped=mapped), table, checksums)


def replace_byte(path: Path, position: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([value]))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((7,), "f4"), ((8, 30, 31), "f2"), ((5, 300, 301), "f4"), ((3, 700, 701), "f2")],
)
def test_rows_are_read_and_damage_is_named(
    shape: tuple[int, ...], dtype: str, mapped: bool, check: bool, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).standard_normal((5, *shape)).astype(dtype)
    path = tmp_path / "rows"
    rows = rows_in_a_file(path, values, mapped=mapped, check=check)
    for first, count in ((0, 5), (3, 1), (1, 3)):
        out = np.empty((count, *shape), dtype)
        rows.read(first, out)
        np.testing.assert_array_equal(out, values[first : first + count])
        part = np.empty((count, *values[0, -1].shape), dtype)
        rows.read(first, part, (-1,))
        np.testing.assert_array_equal(part, values[first : first + count, -1])
    apart = np.zeros((2, *shape, 2), dtype)[..., 0]  # not contiguous
    rows.read(2, apart)
    np.testing.assert_array_equal(apart, values[2:4])
    out = np.zeros((4, *shape), dtype)
    rows.gather(np.array([4, 0, 2]), out, np.array([1, 3, 0]))
    np.testing.assert_array_equal(out[[1, 3, 0]], values[[4, 0, 2]])
    size = values[0].nbytes
    content = bytes(OFFSET) + values.tobytes()
    for place in (2 * size, 2 * size + size // 2, 3 * size - 1):  # all in row 2
        position = OFFSET + place
        replace_byte(path, position, content[position] ^ 1)
        rows = rows_in_a_file(path, values, mapped=mapped, check=check)
        out = np.empty((2, *shape), dtype)
        rows.read(0, out)
        if check:
            with pytest.raises(ArchiveError, match=rf"damaged file \(at row {START + 2} of rows"):
                rows.read(1, out)
        else:
            rows.read(1, out)
            assert (out.view(np.uint8) != values[1:3].view(np.uint8)).sum() == 1
        replace_byte(path, position, content[position])


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    ("shape", "chunk"), [((9, 5), (4, 5)), ((3, 7, 4, 5), (1, 3, 4, 5)), ((6, 2, 3), (2, 2, 2))]
)
def test_compressed_rows_are_put_together_from_their_chunks(
    shape: tuple[int, ...], chunk: tuple[int, ...], mapped: bool, codec: str, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype("f4")
    content, extents = bytearray(OFFSET), []
    for start in itertools.product(*map(range, [0] * len(shape), shape, chunk)):
        padded = np.zeros(chunk, "f4")
        block = values[tuple(slice(a, a + n) for a, n in zip(start, chunk, strict=True))]
        padded[tuple(map(slice, block.shape))] = block
        packed = compress(padded, codec)
        extents.append((len(content), len(packed)))
        content += packed
    path = tmp_path / "rows"
    path.write_bytes(content)
    table = Table(shape=shape, dtype="float32", extents=tuple(extents), chunk=chunk, codec=codec)
    sums = np.array([xxh3_64_intdigest(row.tobytes()) for row in values], np.uint64)
    rows = CompressedRows(opened(path, mapped=mapped), table, Checksums(path, "rows", START, sums))
    for first, count in ((0, shape[0]), (2, 1), (1, 2), (shape[0] - 1, 1)):
        out = np.empty((count, *shape[1:]), "f4")
        rows.read(first, out)
        np.testing.assert_array_equal(out, values[first : first + count])
    part = np.empty((2, *shape[2:]), "f4")
    rows.read(1, part, (1,))
    np.testing.assert_array_equal(part, values[1:3, 1])
    order = np.random.default_rng(1).permutation(shape[0])
    out = np.empty(shape, "f4")
    rows.gather(order, out, np.arange(shape[0]))
    np.testing.assert_array_equal(out, values[order])
    offset, length = extents[-1]
    for damage in (content[offset] ^ 255, None):  # a changed byte, then a chunk cut short
        broken = bytearray(content)
        if damage is not None:
            broken[offset + length // 2] ^= 255
        else:
            table = Table(shape=shape, dtype="float32", chunk=chunk, codec=codec,
                          extents=(*extents[:-1], (offset, length - 1)))  # fmt: skip
        (tmp_path / "broken").write_bytes(broken)
        source = opened(tmp_path / "broken", mapped=mapped)
        rows = CompressedRows(source, table, Checksums(path, "rows", START, sums))
        with pytest.raises((ValueError, ArchiveError)):
            rows.read(0, np.empty(shape, "f4"))
