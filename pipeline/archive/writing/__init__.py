"""Writing of archives: batches of rows into shards, shards into a complete archive."""
