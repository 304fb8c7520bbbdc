"""The file format: what a file of an archive holds, and how one is read by its footer."""
