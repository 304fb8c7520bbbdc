"""A folder of results with tables, figures and a page, which appears all at once."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.foundation.atomic_files import temporary_beside, write_failures_named
from pipeline.foundation.errors import ConfigError


@contextmanager
def replaced_folder(folder: Path, table: str) -> Iterator[Path]:
    """Yield a new folder beside `folder`, which it replaces at the end.

    Args:
        folder: a new one, or one that holds earlier results of this kind.
        table: the file that such results hold.
    """
    if folder.exists() and not (folder / table).is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: exists and holds something else; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    try:
        with write_failures_named(folder):
            temporary.mkdir()
            yield temporary
            if folder.exists():
                before = temporary_beside(folder)
                folder.replace(before)
                temporary.replace(folder)
                shutil.rmtree(before)
            else:
                temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def csv_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as CSV in UTF-8; NaN is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value != value else value for key, value in row.items()})
    return text.getvalue().encode("utf-8")
