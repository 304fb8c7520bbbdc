"""What a sweep does when its jobs have ended."""

from __future__ import annotations

from pipeline.common.configured import configured
from pipeline.similarity.measure_names import Measure


@configured
class SweepOptions:
    """Options of a sweep.

    Attributes:
        similarity: measures of how alike the layers of all its archives are (`cka`, `rsa`,
            `procrustes`); none without.
    """

    similarity: tuple[Measure, ...] = ()
