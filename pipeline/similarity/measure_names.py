"""The names of the measures of similarity, without what computes them: for configurations."""

from __future__ import annotations

from enum import StrEnum


class Measure(StrEnum):
    """How similar two layers are.

    CKA: debiased, linear; 1 for layers equal but for rotation and scale, about 0 for independent
        ones.
    RSA: Spearman's correlation of correlation-distance RDMs, -1..1.
    PROCRUSTES: the angular distance, radians 0 (equal but for rotation and scale) to π/2.
    """

    CKA = "cka"
    RSA = "rsa"
    PROCRUSTES = "procrustes"
