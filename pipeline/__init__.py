"""featuremaps: see and keep what happens inside a vision network."""

__version__ = "0.1.0"
