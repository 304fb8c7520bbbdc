"""Shared basics: configuration classes, errors, files, locks, progress, signals, network."""
