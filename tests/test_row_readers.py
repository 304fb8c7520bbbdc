"""Rows of contiguous datasets, mapped or read: small ones, and such as no cache holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from pipeline.archive.row_reader import Checksums, FileRows, MappedRows, OpenFile, RowReader
from pipeline.foundation.errors import ArchiveError

START, OFFSET = 40, 24


def rows_in_a_file(path: Path, values: np.ndarray, *, mapped: bool, check: bool) -> RowReader:
    """Return what reads `values`, the rows from `START` of an archive on, out of a file."""
    sums = np.array([xxh3_64_intdigest(row.tobytes()) for row in values], np.uint64)
    checksums = Checksums(path, "rows", START, sums if check else None)
    if not path.exists():
        path.write_bytes(bytes(OFFSET) + values.tobytes())
    file = OpenFile(path)
    if mapped:
        return MappedRows(file.mapped(), OFFSET, values, checksums)
    return FileRows(file, OFFSET, values, checksums)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((7,), "f4"), ((8, 30, 31), "f2"), ((5, 300, 301), "f4"), ((3, 900, 901), "f2")],
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
    if mapped:
        rows.read(2, apart)
        np.testing.assert_array_equal(apart, values[2:4])
    size = values[0].nbytes
    content = bytearray(path.read_bytes())
    for place in (2 * size, 2 * size + size // 2, 3 * size - 1):  # all in row 2
        damaged = tmp_path / f"damaged-{place}"
        damaged.write_bytes(content)
        with damaged.open("r+b") as file:
            file.seek(OFFSET + place)
            file.write(bytes([content[OFFSET + place] ^ 1]))
        rows = rows_in_a_file(damaged, values, mapped=mapped, check=check)
        out = np.empty((2, *shape), dtype)
        rows.read(0, out)
        if check:
            with pytest.raises(ArchiveError, match=f"damaged at row {START + 2} of rows"):
                rows.read(1, out)
        else:
            rows.read(1, out)
            assert (out.view(np.uint8) != values[1:3].view(np.uint8)).sum() == 1
