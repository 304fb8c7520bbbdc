"""The archive on disk: its format, the writing side and the reading side.

Nothing in here imports torch. What reads files raises ArchiveError, which names the file, if one is
missing or damaged; what writes them, DiskFullError too.
"""

import os

# HDF5 would otherwise load native code from HDF5_PLUGIN_PATH when a file names an unknown filter.
os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")
