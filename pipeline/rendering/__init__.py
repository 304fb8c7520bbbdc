"""Rendering: shared parts of the renderers and the loop that renders an archive.

No torch, no model, no dataset.
"""
