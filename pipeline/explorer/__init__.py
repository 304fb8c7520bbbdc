"""Explorer: pages over archives, rendered on request by a local server."""
