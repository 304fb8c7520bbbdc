"""The archive on disk: its format, the writing side and the reading side.

Nothing in here imports torch.
"""
