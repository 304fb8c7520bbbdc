"""Codecs: what is stored is what was given, readable by HDF5 alone, and damage shows."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive.format import codec as codecs
from pipeline.archive.format.codec import Codec, dataset_options
from pipeline.archive.reading.archive import Archive
from pipeline.archive.tools.compare import compare
from pipeline.archive.tools.verify import verify
from pipeline.archive.writing.row_writer import CompressedWriter
from pipeline.capture.selector import LayerSelector
from pipeline.common.errors import ArchiveError
from pipeline.datasets.synthetic import Synthetic
from pipeline.extraction.extract import extract
from pipeline.extraction.settings import Storage
from pipeline.models.torchvision import TorchvisionModel
from tests.conftest import Run, tiny_extraction

COMPRESSING = ["gzip", "zstd"]


@settings(max_examples=25, deadline=None)
@given(
    codec=st.sampled_from(COMPRESSING),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5)),
    split=st.integers(1, 7),
    dtype=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 2**16),
)
def test_chunks_made_here_are_hdf5s_own(
    codec: Codec, shape: tuple[int, ...], split: int, dtype: str, seed: int
) -> None:
    """Channels split at any place, the last chunk of a sample not full."""
    values = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    chunk = (1, min(split, shape[1]), *shape[2:])
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        options = dataset_options(codec)
        ours = file.create_dataset("ours", shape=shape, dtype=dtype, chunks=chunk, **options)
        writer = CompressedWriter()
        writer.write(ours, 0, values[:2], codec)
        writer.write(ours, len(values[:2]), values[2:], codec)
        writer.close()
        np.testing.assert_array_equal(ours[...], values)
        theirs = file.create_dataset("theirs", data=values, chunks=chunk, **options)
        places = (0,) * len(shape)
        mine, its = (data.id.read_direct_chunk(places)[1] for data in (ours, theirs))
        assert len(mine) <= len(its) + 16  # as well compressed as by HDF5 itself


def _extract(path: Path, codec: str) -> None:
    extract(
        tiny_extraction(
            path,
            model=TorchvisionModel(name="squeezenet1_1", weights=None),
            dataset=Synthetic(samples=3, height=224, width=224),
            layers=LayerSelector(include=("features.0", "features.1", "features.12")),
            storage=Storage(codec=codec, shard_samples=2),
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("codec", COMPRESSING)
def test_an_archive_holds_the_same_arrays_in_less_space(codec: Codec, tmp_path: Path) -> None:
    _extract(tmp_path / "plain", "none")
    _extract(tmp_path / "packed", codec)
    verify(tmp_path / "packed")
    with Archive.open(tmp_path / "plain") as plain, Archive.open(tmp_path / "packed") as packed:
        assert compare(plain, packed)["equal"]
        assert packed.complete.bytes < plain.complete.bytes
        for name, layer in plain.layers.items():
            np.testing.assert_array_equal(layer[:], packed.layers[name][:])
    with h5py.File(tmp_path / "packed" / "archive.h5") as file:  # through the virtual datasets
        assert np.isfinite(file["layers/features.0/activation"][:]).all()


@pytest.mark.parametrize("codec", ["zstd", pytest.param("gzip", marks=pytest.mark.slow)])
def test_a_flipped_bit_in_a_compressed_chunk_shows(codec: Codec, tmp_path: Path) -> None:
    """HDF5 alone notices, without our digests."""
    _extract(tmp_path / "a", codec)
    shard = tmp_path / "a" / "shards" / "00000.h5"
    with h5py.File(shard) as file:
        dataset = file["layers/features.0/activation"]
        assert dataset.chunks[0] == 1
        chunk = dataset.id.get_chunk_info(0)
    content = bytearray(shard.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 16
    shard.write_bytes(bytes(content))
    with h5py.File(shard) as file, pytest.raises(OSError, match=r"[Cc]an't|filter"):
        file["layers/features.0/activation"][:]
    with pytest.raises(ArchiveError, match="damaged"):
        verify(tmp_path / "a")


def test_zstd_without_its_packages_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _extract(tmp_path / "a", "zstd")
    codecs._zstd.cache_clear()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    code, _, err = run("verify", str(tmp_path / "a"))
    assert code == 1
    assert "pip install 'featuremaps[zstd]'" in err
    code, _, err = run("extract", "storage.codec=zstd", f"archive={tmp_path / 'b'}")
    assert code == 2
    assert "storage: codec: zstd needs" in err
    assert "pip install 'featuremaps[zstd]'" in err
    codecs._zstd.cache_clear()


def test_a_mistyped_codec_is_named(run: Run) -> None:
    code, _, err = run("extract", "storage.codec=gzp")
    assert code == 2
    assert "did you mean gzip" in err
