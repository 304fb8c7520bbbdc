"""Inputs: how images are decoded, transformed and loaded."""
