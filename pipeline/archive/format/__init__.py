"""The file format: the content of an archive's files, and their readers, which use the footer."""
