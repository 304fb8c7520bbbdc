"""A folder of images without labels."""

from pipeline.common.configured import Texts, configured
from pipeline.common.paths import PathText
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.files import FileImages, existing_folder, sample_of
from pipeline.datasets.samples import Images
from pipeline.datasets.walk import ImageFiles


@configured
class FlatFolder(ImageDataset):
    """Every image below `root`, at any depth, without labels.

    A sample's id is its path below `root`.

    Attributes:
        root: the folder.
        exclude: globs of files and folders to skip, by name or path below `root`.
    """

    root: PathText = ""
    exclude: Texts = ()

    def open(self) -> Images:
        root = existing_folder(self.root)
        paths = ImageFiles(root, self.exclude).take(self.limit)
        return FileImages([sample_of(path, root) for path in paths], paths)
