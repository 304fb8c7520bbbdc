"""Stored activations for training: a torch dataset, a loader, block shuffle."""
