"""Analysis: what archived activations say, of one archive or over several; no model, no torch."""
