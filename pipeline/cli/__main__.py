"""`python -m pipeline.cli.cli` is the console script `featuremaps`."""

from pipeline.cli.main import entry

entry()
