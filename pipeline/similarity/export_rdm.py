"""RDM of a stored layer, for `export`."""

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
    """Return 1 - Pearson's correlation between samples, `(sample, sample)` float64.

    Samples are flattened maps or means over positions. Rows and columns of constant or non-finite
    samples are NaN.
    """
    features = LayerFeatures(
        archive=archive, number=0, layer=archive.layers[layer],
        over=Over.FLATTEN if flatten else Over.MEAN,
    )  # fmt: skip
    samples = np.asarray(rows, np.int64)
    matched = Matched(
        ids=[archive.samples[row].id for row in rows], rows=[samples],
        labels=np.full(len(rows), -1), missing=0, skipped=0,
    )  # fmt: skip
    all_rows = Rows(features=[features], matched=matched, selected=np.arange(len(rows)))
    rdm = distances(gram(all_rows, 0, np.arange(len(rows)), patterns=True))
    known = np.isfinite(np.diagonal(rdm))
    np.fill_diagonal(rdm, np.where(known, 0, np.nan))
    return rdm
