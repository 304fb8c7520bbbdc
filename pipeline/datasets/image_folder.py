"""A folder of class folders, as torchvision's ImageFolder reads it, without its traps."""

from __future__ import annotations

from pipeline.datasets.base import ImageDataset, readable_name
from pipeline.datasets.files import FileImages, existing_folder, find_images, sample_of
from pipeline.foundation.configured import configured
from pipeline.inputs.samples import Images


@configured
class ImageFolder(ImageDataset):
    """`root/class/…/image.jpg`: the first folder below `root` is the class, at any depth.

    Images that lie in `root` itself are used too, without a label. Classes are numbered in the
    order of their names. A sample's id is its path below `root`.
    """

    root: str = ""

    def open(self) -> Images:
        """See `ImageDataset.open`."""
        root = existing_folder(self.root, "dataset.root")
        paths = find_images(root)
        tops = [path.relative_to(root).parts for path in paths]
        classes = sorted({parts[0] for parts in tops if len(parts) > 1})
        number = {name: label for label, name in enumerate(classes)}
        samples = [
            sample_of(path, root, label=number[parts[0]], label_name=readable_name(parts[0]))
            if len(parts) > 1
            else sample_of(path, root)
            for path, parts in zip(paths, tops, strict=True)
        ]
        return FileImages(samples, paths)
