"""Rows of version 1: out of its chunks as they lie in the file, past HDF5."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive.reader import Archive
from pipeline.archive.row_reader import ChunkRows, Hdf5Rows, OpenFile
from pipeline.foundation.errors import ArchiveError
from tests.conftest import REPOSITORY

FROZEN = REPOSITORY / "tests" / "data" / "archive-v1"


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("fletcher32", [True, False])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_chunks_are_read_as_hdf5_reads_them(
    mapped: bool, fletcher32: bool, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any chunks: padded at the edges, of many rows, of some channels, never written."""
    path = tmp_path_factory.mktemp("rows") / "rows.h5"
    shape = tuple(data.draw(st.integers(1, n)) for n in (9, 5, 4))
    chunk = tuple(data.draw(st.integers(1, n)) for n in shape)
    written = data.draw(st.integers(0, shape[0]))
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "rows", shape, "f4", chunks=chunk, fletcher32=fletcher32, fillvalue=np.nan
        )
        made[:written] = values[:written]
    with h5py.File(path) as file:
        like = np.broadcast_to(np.float32(), shape)
        assert ChunkRows.fits(file["rows"], like)
        opened = OpenFile(path)
        rows = ChunkRows(opened.mapped() if mapped else opened, file["rows"])
        expected = file["rows"][()]
        first = data.draw(st.integers(0, shape[0] - 1))
        out = np.empty((data.draw(st.integers(1, shape[0] - first)), *shape[1:]), np.float32)
        rows.read(first, out)
        np.testing.assert_array_equal(out, expected[first : first + len(out)])
        part = np.empty((len(out), shape[2]), np.float32)
        channel = shape[1] - 1
        rows.read(first, part, (channel,))
        np.testing.assert_array_equal(part, expected[first : first + len(out), channel])


def test_what_is_not_the_values_as_they_are_goes_through_hdf5(tmp_path: Path) -> None:
    def fits(dtype: str = "f4", shape: tuple[int, ...] = (6, 2), **options: Any) -> bool:
        with h5py.File(tmp_path / "rows.h5", "w") as file:
            rows = file.create_dataset("rows", (6, 2), "f4", **options)
            return ChunkRows.fits(rows, np.broadcast_to(np.empty((), dtype), shape))

    assert fits(chunks=(2, 2))
    assert not fits()  # contiguous
    assert not fits(chunks=(2, 2), compression="gzip")
    assert not fits(chunks=(2, 2), shuffle=True)
    assert not fits(chunks=(2, 2), shuffle=True, fletcher32=True)
    assert not fits(chunks=(2, 2), dtype="f8")
    assert not fits(chunks=(2, 2), shape=(5, 2))


def test_archives_are_read_by_chunks_after_their_digest(tmp_path: Path) -> None:
    with Archive.open(FROZEN) as archive, Archive.open(FROZEN, check=False) as unchecked:
        for name in archive.layers:
            expected = unchecked.layers[name][:]
            np.testing.assert_array_equal(archive.layers[name][:], expected)
            np.testing.assert_array_equal(archive.layers[name][1:, -1], expected[1:, -1])
        kinds = [{type(reader) for reader in a._shards._readers.values()}
                 for a in (archive, unchecked)]  # fmt: skip
    assert kinds == [{ChunkRows}, {Hdf5Rows}]  # unchecked: HDF5 compares its Fletcher-32 at least
    damaged = tmp_path / "damaged"
    shutil.copytree(FROZEN, damaged)
    shard = damaged / "shards" / "00001.h5"
    content = bytearray(shard.read_bytes())
    with h5py.File(FROZEN / "shards" / "00001.h5") as file:
        content[file["layers/conv1/activation"].id.get_chunk_info(0).byte_offset + 5] ^= 4
    shard.write_bytes(content)
    with Archive.open(damaged) as archive:
        archive.layers["conv1"][0]
        with pytest.raises(ArchiveError, match=r"00001\.h5"):
            archive.layers["conv1"][2]
