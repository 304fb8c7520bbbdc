"""Reference RDMs from files or arrays: of a brain, of people's judgements, or of another model."""

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.distance import squareform

from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError, one_line, plural, reraised

_CLOSE = 1e-6
"""Share of the largest dissimilarity by which a matrix may miss symmetry and a diagonal of 0."""
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": None}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One subject's RDM."""

    name: str  # its file's, its path if several files share it; with a number of several in it
    path: Path  # `array N` for the Nth (from 0), if an array
    rdm: Array  # `(sample, sample)` float64, symmetric, 0 on the diagonal
    ids: Sequence[str] | None  # None where only their order is known
    known: Array  # samples with dissimilarities, `(sample,)` boolean


def read_references(
    files: Sequence[str | Path | Array], ids: str | Path | Sequence[str] | None = None
) -> list[Reference]:
    """Return RDMs from files or arrays, one subject or several in each; see `rsa_against`."""
    if isinstance(ids, (str, Path)):
        ids = _ids_of(Path(ids))
    found: list[Reference] = []
    for number, file in enumerate(files):
        if isinstance(file, np.ndarray):
            found += _references(file, Path(f"array {number}"), ids)
        elif isinstance(file, (str, Path)):
            found += _read(Path(file).expanduser(), ids)
        else:
            raise ConfigError(f"files: must be paths or NumPy arrays, got {type(file).__name__}")
    if not found:
        raise ConfigError("files: no RDM is given; give a path or an array")
    stems = Counter(path.stem for path in {of.path for of in found})
    return [
        replace(of, name=str(of.path.parent / of.name)) if stems[of.path.stem] > 1 else of
        for of in found
    ]


def _read(path: Path, default_ids: Sequence[str] | None) -> Iterator[Reference]:
    with reraised(f"{path}: cannot be read as an RDM", of=(OSError, ValueError, EOFError)):
        array, own_ids = _load(path)
    yield from _references(array, path, own_ids or default_ids)


def _references(array: Array, path: Path, ids: Sequence[str] | None) -> Iterator[Reference]:
    matrices = _matrices(array, path)
    count = len(matrices[0])
    if ids is not None:  # as archives store them
        ids = [unicodedata.normalize("NFC", str(id_)) for id_ in ids]
        if len(ids) != count:
            raise ConfigError(
                f"{path}: an RDM of {plural(count, 'sample')}, but {plural(len(ids), 'id')}"
            )
        if len(set(ids)) < count:
            twice = next(id_ for id_ in ids if ids.count(id_) > 1)
            raise ConfigError(f"{path}: id {one_line(twice, limit=60)} is given twice")
    for number, matrix in enumerate(matrices, 1):
        name = path.stem if len(matrices) == 1 else f"{path.stem} {number}"
        rdm, known = _checked(matrix, path)
        yield Reference(name=name, path=path, rdm=rdm, ids=ids, known=known)


def _load(path: Path) -> tuple[Array, list[str] | None]:
    suffix = path.suffix.lower()
    if suffix in _DELIMITERS:
        return _load_text(path, _DELIMITERS[suffix])
    if suffix not in (".npy", ".npz"):
        raise ValueError("its name does not end in .npy, .npz, .csv, .tsv or .txt")
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content, None
    with content:
        arrays = {name: content[name] for name in content.files}
    ids = arrays.pop("ids", None)
    arrays.pop("labels", None)
    if len(arrays) != 1:
        raise ValueError(f"it holds {len(arrays)} arrays beside ids; one is needed")
    if ids is not None and ids.dtype.kind == "S":  # as from MATLAB or HDF5
        ids = np.char.decode(ids, "utf-8")
    return next(iter(arrays.values())), None if ids is None else [str(id_) for id_ in ids.ravel()]


def _load_text(path: Path, delimiter: str | None) -> tuple[Array, list[str] | None]:
    text = path.read_text(encoding="utf-8-sig")
    if delimiter is None:
        delimiter = next((mark for mark in "\t,;" if mark in text), " ")
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    if not rows:
        raise ValueError("it is empty")
    height, width = len(rows), len(rows[-1])
    if len(rows[0]) == width - 1 == height - 1:  # R's write.table leaves the corner out
        rows[0].insert(0, "")
    if any(len(row) != width for row in rows):
        raise ValueError(f"its rows are not all of {width} cells")
    head, ids = rows[0], None
    if height == width + 1:
        ids, rows = head, rows[1:]
    elif height == width > 1 and not _is_number(head[0]) and _begins_with_ids(rows):
        ids, rows = head[1:], rows[1:]
    if len(rows) == width - 1:
        first = [row[0] for row in rows]
        if ids not in (None, first):
            raise ValueError("its first row and its first column name different samples")
        ids, rows = first, [row[1:] for row in rows]
    numbers = [[np.nan if _is_empty(cell) else float(cell) for cell in row] for row in rows]
    return np.array(numbers), ids


def _begins_with_ids(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row and column are ids, not dissimilarities beside an empty
    diagonal.
    """
    head, diagonal = rows[0][1:], rows[1][1]
    if any(not (_is_empty(cell) or _is_number(cell)) for cell in rows[0]) or _is_number(diagonal):
        return True
    same = head == [row[0] for row in rows[1:]] and not any(map(_is_empty, head))
    beside = [cell for i, row in enumerate(rows) for j, cell in enumerate(row) if i * j and i != j]
    one_triangle = any(map(_is_empty, beside))
    whole = [all(map(str.isdigit, cells)) for cells in (head, beside)]
    return same and (one_triangle or whole == [True, False])


def _is_empty(cell: str) -> bool:
    return cell.strip().lower() in ("", "nan", "na")  # the last as R writes it


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def _ids_of(path: Path) -> list[str]:
    path = path.expanduser()
    with reraised(f"{path}: cannot be read", of=(OSError, ValueError)):
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line]
    rows = list(csv.reader(lines))
    if rows and "id" in rows[0]:
        column = rows[0].index("id")
        return [row[column] for row in rows[1:] if len(row) > column]
    cells = [next(csv.reader([line])) for line in lines]  # an id may hold commas, or be quoted
    return [row[0] if len(row) == 1 else line for row, line in zip(cells, lines, strict=True)]


def _matrices(array: Array, path: Path) -> list[Array]:
    if array.dtype.kind not in "fiub":
        raise ConfigError(f"{path}: holds {array.dtype}; an RDM is of real numbers")
    array = array.astype(np.float64)
    shape: tuple[int, ...] = array.shape
    square = len(shape) == 2 and shape[0] == shape[1]
    if len(shape) in (1, 2) and not square and array.size:
        condensed = array.reshape(1, -1) if 1 in shape else np.atleast_2d(array)
        try:
            return list(map(squareform, condensed))
        except ValueError as error:
            raise ConfigError(
                f"{path}: {condensed.shape[1]} numbers are no upper triangle; n samples have "
                "n(n-1)/2 pairs"
            ) from error
    if len(shape) == 3 and shape[0] == shape[1] != shape[2]:
        array = np.moveaxis(array, 2, 0)
    array = array[None] if square else array
    if array.ndim != 3 or array.shape[-2] != array.shape[-1] or not array.size:
        raise ConfigError(
            f"{path}: its shape is {shape}; an RDM is (sample, sample), (subject, sample, sample), "
            "or its upper triangle as a vector"
        )
    return list(array)


def _checked(matrix: Array, path: Path) -> tuple[Array, Array]:
    """Return a matrix that is symmetric and 0 on the diagonal, and which samples are known.

    One triangle may be empty, and the diagonal; also all that belongs to a sample.
    """
    matrix = np.array(matrix)
    lower = np.tril(np.ones(matrix.shape, bool), -1)
    if np.isnan(matrix[lower]).all() or np.isnan(matrix.T[lower]).all():
        matrix = np.where(np.isnan(matrix), matrix.T, matrix)
    largest = float(np.nanmax(np.abs(matrix), initial=0))
    diagonal = np.nan_to_num(np.diagonal(matrix))
    if np.abs(diagonal).max(initial=0) > _CLOSE * largest:
        raise ConfigError(
            f"{path}: its diagonal is not 0 but up to {np.abs(diagonal).max():.3g}; an RDM holds "
            "dissimilarities: of correlations give 1 - correlation"
        )
    np.fill_diagonal(matrix, 0)
    missing = np.isnan(matrix) | np.eye(len(matrix), dtype=bool)
    known: Array = np.asarray(~missing.all(axis=1))
    part = matrix[np.ix_(known, known)]
    if not np.isfinite(part).all():
        i, j = (np.flatnonzero(known)[at] for at in np.argwhere(~np.isfinite(part))[0])
        raise ConfigError(f"{path}: its number at row {i}, column {j} (from 0) is not finite")
    if np.abs(part - part.T).max(initial=0) > _CLOSE * largest:
        raise ConfigError(f"{path}: is not symmetric; an RDM is")
    return np.asarray(matrix), known
