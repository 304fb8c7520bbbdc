"""The embedded dataset: ten photographs from scikit-image, CC0 or public domain."""

from importlib import resources
from pathlib import Path

from pipeline.common.configured import configured
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.files import FileImages
from pipeline.datasets.samples import Images, Sample

# id, file, label, licence as stated in scikit-image's docstrings (skimage.data)
PHOTOS = (
    ("astronaut", "astronaut.png", "person", "public domain (NASA)"),
    ("brick", "brick.png", "texture", "CC0 (CC0Textures)"),
    ("camera", "camera.png", "person", "CC0 (Lav Varshney)"),
    ("chelsea", "chelsea.png", "cat", "CC0 (Stefan van der Walt)"),
    ("coffee", "coffee.png", "espresso", "CC0 (Rachel Michetti)"),
    ("grass", "grass.png", "texture", "CC0 (linolafett)"),
    ("gravel", "gravel.png", "texture", "CC0 (CC0Textures)"),
    ("hubble_deep_field", "hubble_deep_field.jpg", "sky", "public domain (NASA)"),
    ("retina", "retina.jpg", "medical", "CC0 (Häggström)"),
    ("rocket", "rocket.jpg", "rocket", "public domain (SpaceX)"),
)


@configured
class SampleImages(ImageDataset):
    """Photographs from the installed scikit-image; a sample's id is the photo's name there."""

    def open(self) -> Images:
        folder = Path(str(resources.files("skimage"))) / "data"
        labels = {
            name: number for number, name in enumerate(sorted({photo[2] for photo in PHOTOS}))
        }
        samples = [
            Sample(id=name, label=labels[label], label_name=label, path=f"skimage/data/{file}")
            for name, file, label, _licence in PHOTOS
        ]
        return FileImages(samples, [folder / file for _, file, _, _ in PHOTOS])
