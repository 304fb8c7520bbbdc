"""Writer of inputs as JPEG files into a new HDF5 file."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from xxhash import xxh3_64_intdigest

from pipeline.archive.format import schema, tree

_IN_MEMORY = 64 * 2**20
_STEP = 4 * 2**20


class JpegWriter:
    """Buffer of JPEG files until their total size is known; spills to disk when it is large."""

    def __init__(self, folder: Path) -> None:
        self._bytes = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))  # noqa: SIM115
        self._sizes: list[int] = []
        self._sums: list[int] = []

    def write(self, contents: Iterable[bytes]) -> None:
        """Add the files of the next samples."""
        for content in contents:
            self._bytes.write(content)
            self._sizes.append(len(content))
            self._sums.append(xxh3_64_intdigest(content))

    def finish(self, file: h5py.File) -> None:
        """Write all files into an HDF5 file with its tree created."""
        group = file[schema.INPUTS_GROUP]
        group[schema.CHECKSUM][...] = np.array(self._sums, np.uint64)
        total = sum(self._sizes)
        stored = tree.create_rows(group, schema.JPEG, (total,), "uint8", ())
        self._bytes.seek(0)
        for start in range(0, total, _STEP):
            block = self._bytes.read(_STEP)
            stored[start : start + len(block)] = np.frombuffer(block, np.uint8)
        tree.write_jpeg_offsets(stored, np.cumsum([0, *self._sizes]))
        self.close()

    def close(self) -> None:
        """Discard the buffer."""
        self._bytes.close()
