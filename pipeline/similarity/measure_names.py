"""Names of the similarity measures, for configurations, without their computation."""

from typing import Literal

Measure = Literal["cka", "rsa", "procrustes"]
"""Similarity measure of two layers.

cka: debiased linear CKA; 1 for layers equal up to rotation and scale, about 0 for independent
    layers.
rsa: Spearman's correlation of correlation-distance RDMs, -1..1.
procrustes: angular distance, radians, 0 (equal up to rotation and scale) to π/2.
"""
