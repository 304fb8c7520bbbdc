"""Rendering: what renderers share, and the loop that draws an archive.

No torch, no model, no dataset.
"""
