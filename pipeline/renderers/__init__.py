"""Renderers: each file draws one kind of picture from stored activations.

No torch, no model, no dataset.
"""
