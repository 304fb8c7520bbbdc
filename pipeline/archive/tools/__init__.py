"""What people do with an archive: info, verify, compare, export, pack."""
