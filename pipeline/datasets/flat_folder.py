"""A folder of images without labels."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.datasets.base import ImageDataset, Images
from pipeline.datasets.files import FileImages, existing_folder, find_images, sample_of


@dataclass(frozen=True, kw_only=True)
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
