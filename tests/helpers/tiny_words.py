"""The tiny model over a few images, as overrides."""

TINY = ("model=tiny", "dataset=synthetic", "dataset.samples=3", "device=cpu")
