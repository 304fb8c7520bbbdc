"""Comparison of the samples and the values of two archives, layer by layer."""

from typing import Any

import numpy as np

from pipeline.archive.reading.archive import Archive, opened
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.differences import differences
from pipeline.common.errors import one_line, plural
from pipeline.common.places import Place
from pipeline.common.progress import table


def compare(
    one: Archive | str | Place, two: Archive | str | Place, *, rtol: float = 0.0, atol: float = 0.0
) -> dict[str, Any]:
    """Return the differences of two archives, open or given by their paths.

    Two values agree if |a - b| <= atol + rtol * |a|, both are NaN, or both are the same infinity.

    Returns:
        `equal`; `samples`: `same` or the difference; `layers`: name → `max_abs`, `max_relative` (to
        the layer's largest magnitude in `one`), `cosine`, `outside` (number of values beyond the
        tolerance) or `problem`; `other_pixels`: ids of samples whose stored pixels differ, if both
        archives record them; `other_labels`: ids of samples with different labels (their names, if
        they have some); `environment`: lines `key: a → b` for different versions, hardware or
        threads. None marks undefined figures: cosines of zeros, figures without finite values.
    """
    with opened(one) as a, opened(two) as b:
        return _compare(a, b, rtol, atol)


def _compare(one: Archive, two: Archive, rtol: float, atol: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "equal": False, "samples": "same", "layers": {}, "other_pixels": [],
        "other_labels": [],
        "environment": differences(one.manifest.environment, two.manifest.environment),
    }  # fmt: skip
    ids = one.samples.ids, two.samples.ids
    if list(ids[0]) != list(ids[1]):
        first = next(
            (i for i, pair in enumerate(zip(*ids, strict=False)) if pair[0] != pair[1]), None
        )
        where = f"first at row {first}" if first is not None else f"{len(ids[0])} and {len(ids[1])}"
        return result | {"samples": f"different samples ({where})"}
    pairs = list(zip(one.samples, two.samples, strict=True))
    result["other_pixels"] = [
        a.id
        for a, b in pairs
        if a.pixels_sha256 and b.pixels_sha256 and a.pixels_sha256 != b.pixels_sha256
    ]
    result["other_labels"] = [
        a.id for a, b in pairs if (a.label_name or a.label) != (b.label_name or b.label)
    ]
    if any(bool(a.error) != bool(b.error) for a, b in pairs):
        result["samples"] = "same, but different samples were skipped"
    layers = result["layers"]
    for name in dict.fromkeys([*one.layers, *two.layers]):
        if name not in one.layers or name not in two.layers:
            layers[name] = {"problem": f"only in {'A' if name in one.layers else 'B'}"}
            continue
        pair = one.layers[name], two.layers[name]
        if pair[0].shape != pair[1].shape:
            layers[name] = {"problem": f"shapes {pair[0].shape} and {pair[1].shape}"}
        else:
            layers[name] = _compare_layer(*pair, rtol, atol)
    good = all("problem" not in row and row["outside"] == 0 for row in layers.values())
    return result | {"equal": good and result["samples"] == "same"}


def _compare_layer(one: StoredLayer, two: StoredLayer, rtol: float, atol: float) -> dict[str, Any]:
    max_abs = largest = 0.0
    outside = finite_values = 0
    dot = norm_one = norm_two = 0.0
    for i in range(len(one)):
        a, b = one[i].astype(np.float64), two[i].astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        error = np.abs(np.where(finite, a, 0) - np.where(finite, b, 0))
        agrees = equal | (finite & (error <= atol + rtol * np.abs(np.where(finite, a, 0))))
        outside += int((~agrees).sum())
        max_abs = max(max_abs, float(error.max(initial=0)))
        a, b = a[finite], b[finite]
        finite_values += len(a)
        largest = max(largest, float(np.abs(a).max(initial=0)))
        dot += float(a @ b)
        norm_one += float(a @ a)
        norm_two += float(b @ b)
    norm = float(np.sqrt(norm_one) * np.sqrt(norm_two))
    both_zero = finite_values and max_abs == 0
    return {
        "max_abs": max_abs if finite_values else None,
        "max_relative": max_abs / largest if largest else 0.0 if both_zero else None,
        "cosine": dot / norm if norm else None,
        "outside": outside,
    }


def _format(figure: float | None, spec: str) -> str:
    return "undefined" if figure is None else f"{figure:{spec}}"


def describe(result: dict[str, Any]) -> str:
    """Return the comparison as a text table."""
    lines = [f"samples: {result['samples']}"]
    for subject, what in (("inputs", "pixels"), ("labels", "labels")):
        if ids := result[f"other_{what}"]:
            count = plural(len(ids), "sample")
            lines.append(f"{subject}:  {count} with different {what}, first {one_line(ids[0])}")
    layers = result["layers"].items()
    rows = [
        (name, _format(row["max_abs"], ".3g"), _format(row["max_relative"], ".2e"),
         _format(row["cosine"], ".8f"), row["outside"])
        for name, row in layers
        if "problem" not in row
    ]  # fmt: skip
    head = ("layer", "max |a-b|", "relative", "cosine", "outside")
    lines += table(head, rows).splitlines() if rows else []
    lines += [f"{name}: {row['problem']}" for name, row in layers if "problem" in row]
    if not result["equal"]:
        lines += [f"environment, {line}" for line in result["environment"]]
    lines.append("equal within the tolerance" if result["equal"] else "NOT equal")
    return "\n".join(lines) + "\n"
