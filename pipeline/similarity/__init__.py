"""Analysis of archived activations, within one archive or across several; no model, no torch."""
