"""The reading side: an archive as samples and lazily read layers, without HDF5."""
