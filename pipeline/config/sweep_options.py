"""Options of a sweep."""

from pipeline.common.configured import configured
from pipeline.similarity.measure_names import Measure


@configured
class SweepOptions:
    """Options of a sweep.

    Attributes:
        similarity: similarity measures to compute between the layers of all archives (`cka`,
            `rsa`, `procrustes`).
    """

    similarity: tuple[Measure, ...] = ()
