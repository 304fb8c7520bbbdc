"""A CSV file that names image files, ids and labels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.datasets.adapter import as_label, numbered
from pipeline.datasets.base import ImageDataset, readable_name
from pipeline.datasets.files import FileImages
from pipeline.foundation.configured import configured
from pipeline.foundation.errors import ConfigError, suggestion
from pipeline.inputs.samples import Images, Sample


@configured
class CsvFile(ImageDataset):
    """One image per line, in the file's order; the first line names the columns.

    Attributes:
        path: the CSV file (UTF-8).
        root: folder that relative paths start from; by default the CSV file's own.
        path_column: column with the image's path.
        id_column: column with its id; empty takes the path as it is written.
        label_column: column with its label, a number or a name; empty for none. A column that is
            not there is an error unless it is the default name.
        delimiter: one character.
    """

    kind: ClassVar[str] = "csv"

    path: str = ""
    root: str = ""
    path_column: str = "path"
    id_column: str = "id"
    label_column: str = "label"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","

    def reads(self) -> dict[str, str]:
        """See `ImageDataset.reads`."""
        return super().reads() | {"dataset.path": self.path}

    def open(self) -> Images:
        """See `ImageDataset.open`."""
        if not self.path:
            raise ConfigError("dataset.path: name the CSV file, e.g. dataset.path=images.csv")
        file = Path(self.path).expanduser()
        root = Path(self.root).expanduser() if self.root else file.parent
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.DictReader(stream, delimiter=self.delimiter, strict=True)
                rows = list(reader)
                columns = list(reader.fieldnames or [])
        except OSError as error:
            raise ConfigError(f"dataset.path: {file}: {error.strerror}") from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"dataset.path: {file} is no readable CSV file: {error}") from error
        self._check(columns)
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values() or not row[self.path_column]:
                raise ConfigError(
                    f"dataset.path: {file}, row {number}: wrong number of cells, or no path"
                )
        written = [row[self.path_column] for row in rows]
        names = [row[self.id_column] for row in rows] if self.id_column in columns else written
        has_label = self.label_column in columns
        labels = numbered([as_label(row[self.label_column] if has_label else None) for row in rows])
        samples = [
            Sample(
                id=name, label=label, label_name=label_name, path=readable_name(str(root / path))
            )
            for name, path, (label, label_name) in zip(names, written, labels, strict=True)
        ]
        return FileImages(samples, [root / path for path in written])

    def _check(self, columns: list[str]) -> None:
        for key in ("path_column", "id_column", "label_column"):
            wanted = getattr(self, key)
            default = type(self).__dataclass_fields__[key].default
            needed = key == "path_column" or (wanted and wanted != default)
            if needed and wanted not in columns:
                raise ConfigError(
                    f"dataset.{key}: {self.path} has no column {wanted!r}; "
                    f"{suggestion(wanted, columns)}"
                )
