"""Drawing: colormaps, tile layout, text, picture formats."""
