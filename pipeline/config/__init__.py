"""Conversion of Hydra configurations to typed objects."""
