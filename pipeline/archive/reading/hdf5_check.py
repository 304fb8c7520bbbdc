"""Check that HDF5 reads the same content from a file as this package does from its footer.

HDF5 crashes on some damaged files and loops forever on others, so a subprocess with a CPU time
limit opens them.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.common.errors import ArchiveError

_CPU_SECONDS = 5
_TABLES_PER_SECOND = 200  # ten times as many on a quiet core
_WALL_SECONDS = 120  # for each file: a slow network file system is not a hang


def check_hdf5_view(files: Sequence[ArchiveFile]) -> None:
    """Compare HDF5's view of each file, which must be local, with the footer."""
    command = [sys.executable, "-m", "pipeline.archive.tools.hdf5_view"]
    lines = ""
    for file in files:
        seconds = _CPU_SECONDS + len(file.footer.tables) // _TABLES_PER_SECOND
        lines += f"{json.dumps([str(file.path.absolute()), seconds])}\n"
    try:
        result = subprocess.run(
            command, input=lines, capture_output=True, text=True, check=False,
            timeout=_WALL_SECONDS * len(files),
        )  # fmt: skip
        output = result.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else (error.stdout or "")
    faults = [json.loads(line) for line in output.splitlines() if line.endswith('"')]
    for file, fault in zip(files, faults, strict=False):
        if fault:
            raise ArchiveError(f"{file.path}: HDF5 tools would misread this file: {fault}")
    if len(faults) < len(files):
        raise ArchiveError(f"{files[len(faults)].path}: damaged; HDF5 cannot read its structure")
