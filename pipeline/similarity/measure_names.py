"""Names of the similarity measures, for configurations, without their computation."""

from enum import StrEnum


class Measure(StrEnum):
    """Similarity measure of two layers.

    CKA: debiased linear CKA; 1 for layers equal up to rotation and scale, about 0 for independent
        layers.
    RSA: Spearman's correlation of correlation-distance RDMs, -1..1.
    PROCRUSTES: angular distance, radians, 0 (equal up to rotation and scale) to π/2.
    """

    CKA = "cka"
    RSA = "rsa"
    PROCRUSTES = "procrustes"
