"""Renderers: each file draws one kind of picture from stored activations.

No torch, no model, no dataset.
"""

from pipeline.rendering.renderer import Picture, Renderer

__all__ = ["Picture", "Renderer"]
