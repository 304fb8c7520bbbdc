"""Layers: which ones a model has, which are wanted, what their axes are, and hooks on them."""
