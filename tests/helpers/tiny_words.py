"""The tiny model over a few images, as overrides."""

TINY = (
    "model=tiny", "dataset=synthetic", "dataset.samples=3", "dataset.height=24", "dataset.width=24",
    "device=cpu",
)  # fmt: skip
