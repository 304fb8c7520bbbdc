"""What every room stands on: declarations, files, locks, signals, cores, the network."""
