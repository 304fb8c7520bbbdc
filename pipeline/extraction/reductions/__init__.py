"""Reductions: make activations smaller before they are stored, one module for each kind."""

from pipeline.extraction.reductions.base import Reduction

__all__ = ["Reduction"]
