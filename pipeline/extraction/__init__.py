"""Extraction: dataset → batches → forward pass → reduction → the rows of an archive."""
