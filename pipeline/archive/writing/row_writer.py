"""Writer of rows and their checksums; uncompressed rows bypass HDF5."""

import errno
import itertools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from xxhash import xxh3_64_intdigest

from pipeline.archive.format import schema
from pipeline.archive.format.codec import compress
from pipeline.common.arrays import Array
from pipeline.common.atomic_files import write_at
from pipeline.common.machine import cores, on_local_disk

_BLOCK = 2**20  # fits a core's cache: rows are hashed, then copied from the cache
_MOST_THREADS = 4


class RowWriter:
    """Writer of the rows of a new file's datasets; it reserves their disk space.

    Contiguous datasets are written at their offset, without the locks of HDF5 and Python; chunked
    datasets are compressed.

    Args:
        path, file: of the file, open for writing, with its datasets created.
        codecs: dataset of rows → codec; datasets that the file does not have are ignored.
    """

    def __init__(self, path: Path, file: h5py.File, codecs: Mapping[str, str]) -> None:
        self._file = file
        self._codecs = codecs = {name: codec for name, codec in codecs.items() if name in file}
        self.checksums = {name: np.zeros(file[name].shape[0], np.uint64) for name in codecs}
        self._compressed = CompressedWriter()
        self._threads = ThreadPoolExecutor(min(_MOST_THREADS, max(1, cores() // 2)))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            file.flush()
            plain = [name for name, codec in codecs.items() if codec == "none"]
            self._offsets = {name: int(file[name].id.get_offset()) for name in plain}
            ends = (
                offset + file[name].id.get_storage_size() for name, offset in self._offsets.items()
            )
            if on_local_disk(path):  # on other file systems, libc may write every block
                _reserve(self._descriptor, max(ends, default=0))
        except BaseException:
            self.close()
            raise

    def write(self, start: int, rows: Mapping[str, Array]) -> None:
        """Write rows of several datasets starting at `start`, each `(sample, …)`, bit for bit."""
        plain = [name for name in rows if name in self._offsets]
        for _ in self._threads.map(lambda name: self._place(name, start, rows[name]), plain):
            pass
        for name in (name for name in rows if name not in self._offsets):  # in their order
            values = np.ascontiguousarray(rows[name])
            self._hash(name, start, values)
            self._compressed.write(self._file[name], start, values, self._codecs[name])

    def finish(self) -> None:
        """Write the checksums into the file."""
        for name, values in self.checksums.items():
            self._file[schema.checksum_path(name)][...] = values
        self.close()

    def close(self) -> None:
        """Stop the threads and close the second file descriptor."""
        self._threads.shutdown()
        self._compressed.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _place(self, name: str, start: int, rows: Array) -> None:
        rows = np.ascontiguousarray(rows)
        size = rows[:1].nbytes
        step = max(1, _BLOCK // size)
        for first in range(0, len(rows), step):
            block = rows[first : first + step]
            self._hash(name, start + first, block)
            offset = self._offsets[name] + (start + first) * size
            write_at(self._descriptor, block.data.cast("B"), offset)

    def _hash(self, name: str, start: int, rows: Array) -> None:
        for number, row in enumerate(rows, start):
            self.checksums[name][number] = xxh3_64_intdigest(row)


def _reserve(descriptor: int, size: int) -> None:
    """Reserve disk space if the system supports it; if not, writing detects a full disk."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # macOS
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


class CompressedWriter:
    """Writer of the rows of compressed datasets, on all cores, outside HDF5's lock."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(cores())

    def write(self, dataset: h5py.Dataset, start: int, rows: Array, codec: str) -> None:
        """Write rows starting at `start`.

        Chunks shared by several samples are written through HDF5: they may be filled in steps.
        """
        if dataset.chunks[0] != 1:
            space = dataset.id.get_space()
            space.select_hyperslab((start, *[0] * (rows.ndim - 1)), rows.shape)
            memory_type = dataset.id.get_type()  # HDF5 converts nothing
            dataset.id.write(h5py.h5s.create_simple(rows.shape), space, rows, memory_type)
            return
        chunks = list(_chunks(dataset.chunks, rows))
        compressed = self._pool.map(lambda chunk: compress(chunk[1], codec), chunks)
        for (offset, _), content in zip(chunks, compressed, strict=True):
            dataset.id.write_direct_chunk((start + offset[0], *offset[1:]), content)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()


def _chunks(shape: tuple[int, ...], rows: Array) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield the offset and values of every chunk; chunks at an edge are padded with zeros."""
    starts = [range(0, size, step) for size, step in zip(rows.shape, shape, strict=True)]
    for offset in itertools.product(*starts):
        chunk = rows[tuple(slice(i, i + step) for i, step in zip(offset, shape, strict=True))]
        if chunk.shape != shape:
            padded = np.zeros(shape, rows.dtype)
            padded[tuple(slice(size) for size in chunk.shape)] = chunk
            chunk = padded
        yield offset, chunk
