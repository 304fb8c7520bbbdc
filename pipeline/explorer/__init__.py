"""The explorer: pages over archives, drawn when they are asked for, by a server on this machine."""
