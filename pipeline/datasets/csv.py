"""A CSV file that names image files, ids and labels."""

import codecs
import csv
import io
import logging
import os
import re
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from pipeline.common.configured import configured
from pipeline.common.errors import ConfigError, SampleError, suggestion
from pipeline.common.paths import PathText
from pipeline.datasets.adapter import numbered
from pipeline.datasets.base import ImageDataset, readable_name
from pipeline.datasets.decoding import read_regular
from pipeline.datasets.files import FileImages
from pipeline.datasets.samples import Images
from pipeline.datasets.sequence import labelled

log = logging.getLogger(__name__)

_BYTE_ORDER_MARKS = {  # UTF-32 first: its mark begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHER_TABLES = (".json", ".jsonl", ".ndjson", ".parquet", ".xls", ".xlsx", ".ods")


def _one_character(text: str) -> str:
    text = text.replace(r"\t", "\t")  # as a shell passes it
    if len(text) != 1:
        raise ValueError(f"must be one character, got {text!r}")
    return text


@configured
class CsvFile(ImageDataset):
    """One image per row, in the file's order; the first row names the columns.

    Spaces around column names, ids and labels are ignored. A path that does not exist as written is
    read without spaces around it, and its backslashes as slashes.

    Attributes:
        path: the CSV file.
        encoding: of the file, e.g. `latin-1`; empty detects UTF-8, UTF-16 and UTF-32, and reads
            any other file as Windows-1252.
        root: base folder of relative paths; by default the CSV file's folder.
        path_column: column of image paths.
        id_column: column of ids; empty uses the path as written.
        label_column: column of labels, numbers or names; empty for unlabelled images. A missing
            column is an error unless it is the default one. See `adapter.as_label`.
        delimiter: one character; Excel's first line `sep=;` has priority.
    """

    type_key: ClassVar[str] = "csv"

    path: PathText = ""
    encoding: str = ""
    root: PathText = ""
    path_column: str = "path"
    id_column: str = "id"
    label_column: str = "label"
    delimiter: Annotated[str, AfterValidator(_one_character)] = ","

    def reads(self) -> dict[str, str]:
        return super().reads() | {"dataset.path": self.path}

    def open(self) -> Images:
        if not self.path:
            raise ConfigError("dataset.path: no CSV file is set; use e.g. dataset.path=images.csv")
        file = Path(self.path).expanduser()
        if file.suffix.lower() in _OTHER_TABLES:
            raise ConfigError(
                f"dataset.path: {file} is not a CSV file; save it as CSV, or read JSON and Parquet "
                f"with dataset=huggingface dataset.name={file} dataset.image_column=…"
            )
        root = Path(self.root).expanduser() if self.root else file.parent
        try:
            content = read_regular(file)
            text = content.decode(self.encoding or _encoding_of(content, file)).lstrip("\ufeff\r\n")
            excel = re.match(r'"?sep=(.)"?[\r\n]+', text, re.IGNORECASE)
            rest, delimiter = (text[excel.end() :], excel[1]) if excel else (text, self.delimiter)
            spaced = delimiter != " " and f'{delimiter} "' in rest  # before a quote
            reader = csv.DictReader(
                io.StringIO(rest, ""), delimiter=delimiter, skipinitialspace=spaced, strict=True
            )
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            rows = list(reader)
        except SampleError as error:
            raise ConfigError(f"dataset.path: {error}") from error
        except LookupError as error:
            raise ConfigError(f"dataset.encoding: {error}") from error
        except (csv.Error, ValueError) as error:
            raise ConfigError(
                f"dataset.path: {file} is not a readable CSV file: {error}"
            ) from error
        self._check(columns)
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values() or not row[self.path_column]:
                raise ConfigError(
                    f"dataset.path: {file}, row {number}: wrong number of cells, or no path"
                )
        written_paths = [row[self.path_column] for row in rows]
        has_id = self.id_column in columns
        ids = [row[self.id_column].strip() for row in rows] if has_id else written_paths
        labels = numbered([row.get(self.label_column) for row in rows])
        paths = [root / _file_of(name, root) for name in written_paths]
        texts = [readable_name(str(path)) for path in paths]
        return FileImages(labelled(labels, ids, texts), paths)

    def _check(self, columns: list[str]) -> None:
        for key in ("path_column", "id_column", "label_column"):
            column = getattr(self, key)
            if column and columns.count(column) > 1:
                raise ConfigError(f"dataset.{key}: {self.path} has several columns {column!r}")
            required = key == "path_column" or (column and column != getattr(CsvFile, key))
            if required and column not in columns:
                delimiter = next((mark for mark in ";\t|," if mark in "".join(columns)), None)
                remedy = (
                    f"set dataset.delimiter={delimiter!r}"
                    if delimiter
                    else suggestion(column, columns)
                )
                raise ConfigError(f"dataset.{key}: {self.path} has no column {column!r}; {remedy}")
        others = [name for name in columns if name not in (self.path_column, self.id_column, "")]
        if self.label_column and self.label_column not in columns and others:
            log.warning(
                "dataset.label_column: %s has no column %r, so images have none; %s",
                self.path, self.label_column, suggestion(self.label_column, others),
            )  # fmt: skip


def _file_of(name: str, root: Path) -> str:
    """Return a path as written or, if it does not exist, as it was meant. Raises nothing."""
    meant = name.strip().replace("\\", "/")
    exists = name == meant or os.path.exists(root / name)  # noqa: PTH110
    return os.path.expanduser(name if exists else meant)  # noqa: PTH111


def _encoding_of(content: bytes, file: Path) -> str:
    """Detect an encoding: byte order mark, zero bytes of UTF-16, valid UTF-8, else cp1252."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return encoding
    if content[:2].count(0) == 1:  # an ASCII character
        return "utf-16-le" if content[1] == 0 else "utf-16-be"
    try:
        content.decode()
    except UnicodeDecodeError:
        if b"\0" in content:
            raise ConfigError(
                f"dataset.path: {file} is not a text file; decompress it, or save it as CSV"
            ) from None
        log.warning(
            "%s: not UTF-8; reading as Windows-1252 (set dataset.encoding to change this)", file
        )
        return "cp1252"
    return "utf-8"
