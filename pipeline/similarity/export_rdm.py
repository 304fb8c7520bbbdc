"""The RDM of a stored layer, as `export` writes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.similarity.features import LayerFeatures, Over
from pipeline.similarity.gram import gram
from pipeline.similarity.matching import Matched
from pipeline.similarity.rdm import distances
from pipeline.similarity.rows import Rows


def rdm_of(archive: Archive, layer: str, rows: Sequence[int], *, flatten: bool) -> Array:
    """Return 1 - Pearson's correlation between samples, `(sample, sample)` float64, of whole maps
    or of means over positions.

    NaN in the row and column of a sample that is constant or not finite there.
    """
    features = LayerFeatures(
        archive=archive, number=0, layer=archive.layers[layer],
        over=Over.FLATTEN if flatten else Over.MEAN,
    )  # fmt: skip
    samples = np.asarray(rows, np.int64)
    matched = Matched(
        ids=[archive.samples[row].id for row in rows], rows=[samples],
        labels=np.full(len(rows), -1), label_names={}, missing=0, skipped=0,
    )  # fmt: skip
    every = Rows(features=[features], matched=matched, kept=np.arange(len(rows)))
    found = distances(gram(every, 0, np.arange(len(rows)), patterns=True))
    known = np.isfinite(np.diagonal(found))
    np.fill_diagonal(found, np.where(known, 0, np.nan))
    return found
