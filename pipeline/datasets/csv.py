"""A CSV file that names image files, ids and labels."""

from __future__ import annotations

import codecs
import csv
import io
import logging
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.common.configured import configured
from pipeline.common.errors import ConfigError, suggestion
from pipeline.common.paths import PathText
from pipeline.datasets.adapter import as_label, numbered
from pipeline.datasets.base import ImageDataset, readable_name
from pipeline.datasets.files import FileImages
from pipeline.datasets.samples import Images, Sample

log = logging.getLogger(__name__)

_MARKS = {  # the bytes that begin a text in Unicode; UTF-32's begin as UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@configured
class CsvFile(ImageDataset):
    """One image per line, in the file's order; the first line names the columns.

    Spaces around the names of columns, ids and labels are ignored, and around a path that does not
    exist with them.

    Attributes:
        path: the CSV file.
        encoding: of the file, e.g. `latin-1`; empty recognises UTF-8 and UTF-16, and takes
            anything else for Windows-1252.
        root: folder that relative paths start from; by default the CSV file's own.
        path_column: column with the image's path.
        id_column: column with its id; empty takes the path as it is written.
        label_column: column with its label, a number or a name; empty for none. A column that is
            not there is an error unless it is the default name. See `adapter.as_label`.
        delimiter: one character.
    """

    kind: ClassVar[str] = "csv"

    path: PathText = ""
    encoding: str = ""
    root: PathText = ""
    path_column: str = "path"
    id_column: str = "id"
    label_column: str = "label"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","

    def reads(self) -> dict[str, str]:
        return super().reads() | {"dataset.path": self.path}

    def open(self) -> Images:
        if not self.path:
            raise ConfigError("dataset.path: name the CSV file, e.g. dataset.path=images.csv")
        file = Path(self.path).expanduser()
        root = Path(self.root).expanduser() if self.root else file.parent
        try:
            content = file.read_bytes()
            text = content.decode(self.encoding or _encoding_of(content, file))
            reader = csv.DictReader(io.StringIO(text, ""), delimiter=self.delimiter, strict=True)
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            rows = list(reader)
        except OSError as error:
            raise ConfigError(f"dataset.path: {file}: {error.strerror}") from error
        except LookupError as error:
            raise ConfigError(f"dataset.encoding: {error}") from error
        except (csv.Error, UnicodeError) as error:
            raise ConfigError(f"dataset.path: {file} is no readable CSV file: {error}") from error
        self._check(columns)
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values() or not row[self.path_column]:
                raise ConfigError(
                    f"dataset.path: {file}, row {number}: wrong number of cells, or no path"
                )
        written = [row[self.path_column] for row in rows]
        named = self.id_column in columns
        names = [row[self.id_column].strip() for row in rows] if named else written
        has_label = self.label_column in columns
        labels = numbered([as_label(row[self.label_column] if has_label else None) for row in rows])
        paths = [
            root / (name if name == name.strip() or (root / name).exists() else name.strip())
            for name in written
        ]
        samples = [
            Sample(id=name, label=label, label_name=label_name, path=readable_name(str(path)))
            for name, path, (label, label_name) in zip(names, paths, labels, strict=True)
        ]
        return FileImages(samples, paths)

    def _check(self, columns: list[str]) -> None:
        for key in ("path_column", "id_column", "label_column"):
            wanted = getattr(self, key)
            if wanted and columns.count(wanted) > 1:
                raise ConfigError(f"dataset.{key}: {self.path} has several columns {wanted!r}")
            default = type(self).__dataclass_fields__[key].default
            needed = key == "path_column" or (wanted and wanted != default)
            if needed and wanted not in columns:
                other = next((mark for mark in ";\t|," if mark in "".join(columns)), None)
                advice = (
                    f"set dataset.delimiter={other!r}" if other else suggestion(wanted, columns)
                )
                raise ConfigError(f"dataset.{key}: {self.path} has no column {wanted!r}; {advice}")


def _encoding_of(content: bytes, file: Path) -> str:
    """Return the encoding of a text: by its mark, by the zeros of UTF-16, else by trial."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return encoding
    if content[:2].count(0) == 1:  # an ASCII character
        return "utf-16-le" if content[1] == 0 else "utf-16-be"
    try:
        content.decode()
    except UnicodeDecodeError:
        log.warning("%s: not UTF-8; read as Windows-1252 (set dataset.encoding)", file)
        return "cp1252"
    return "utf-8"
