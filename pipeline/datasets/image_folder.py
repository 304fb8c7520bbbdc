"""A folder of class folders, as for torchvision's ImageFolder."""

from pipeline.common.configured import configured
from pipeline.datasets.base import nfc, readable_name
from pipeline.datasets.files import FileImages, existing_folder, sample_of
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.datasets.samples import Images
from pipeline.datasets.walk import ImageFiles


@configured
class ImageFolder(FlatFolder):
    """`root/class/…/image.jpg`: the first folder below `root` is the class, at any depth.

    Images directly in `root` are used without a label. Folders that contain an image are classes,
    numbered in the order of their names, independent of `limit`. A sample's id is its path below
    `root`. Hidden and system folders (`@eaDir`, `__MACOSX`) are skipped. `root` and `exclude` are
    the fields of `FlatFolder`.
    """

    def open(self) -> Images:
        root = existing_folder(self.root)
        files = ImageFiles(root, self.exclude)
        paths = files.take(self.limit)
        number = {name: label for label, name in enumerate(files.class_folders(paths))}
        samples = []
        for path in paths:
            folder = path.relative_to(root).parts[0] if path.parent != root else ""
            label = number.get(nfc(folder), -1)
            samples.append(sample_of(path, root, label=label, label_name=readable_name(folder)))
        return FileImages(samples, paths)
