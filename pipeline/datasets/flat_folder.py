"""A folder of images without labels."""

from __future__ import annotations

from pipeline.datasets.base import ImageDataset
from pipeline.datasets.files import FileImages, existing_folder, find_images, sample_of
from pipeline.foundation.configured import configured
from pipeline.inputs.samples import Images


@configured
class FlatFolder(ImageDataset):
    """Every image below `root`, at any depth, without labels.

    A sample's id is its path below `root`.
    """

    root: str = ""

    def open(self) -> Images:
        """See `ImageDataset.open`."""
        root = existing_folder(self.root, "dataset.root")
        paths = find_images(root)
        return FileImages([sample_of(path, root) for path in paths], paths)
