"""Image datasets: each module lists the samples of one kind of source and reads one at a time."""

from pipeline.datasets.base import ImageDataset
from pipeline.datasets.samples import Images, Sample

__all__ = ["ImageDataset", "Images", "Sample"]
