"""Reductions: make activations smaller before they are stored, one module for each kind."""
