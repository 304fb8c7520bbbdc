"""Weights: files, names, loading into a model, and what a library loads itself."""
