"""The writing side: batches of rows become shards, and shards become a complete archive."""
