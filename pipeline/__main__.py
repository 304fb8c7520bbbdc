"""`python -m pipeline` is the console script `featuremaps`."""

from pipeline.cli import entry

entry()
