"""`python -m pipeline.cli` is the console script `featuremaps`."""

from pipeline.cli.main import entry

entry()
