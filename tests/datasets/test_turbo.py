"""`loader.decoder=turbo`: JPEG files decoded at a part of their size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from torchvision.transforms import functional as F

from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ConfigError
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.extraction.extract import extract
from pipeline.extraction.loader import Loader
from pipeline.extraction.pixels import decoded
from pipeline.models.transforms import Transform
from tests.conftest import tiny_extraction

TURBO = Loader(decoder="turbo")
SMALL = Transform(resize=(40,), crop=(32,))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder: JPEG files of 300 × 451, the same rotated by EXIF, and a PNG."""
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = Image.fromarray(data.chelsea())
    photo.save(folder / "a.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "b.jpg", quality=95, exif=exif)
    photo.save(folder / "c.png")
    return folder


def test_pixels_are_those_of_libjpegs_scaled_decoding(photos: Path) -> None:
    images = FlatFolder(root=photos).open()
    for row, name, turns in [(0, "a.jpg", 0), (1, "b.jpg", 3)]:
        with Image.open(photos / name) as image:
            image.draft("RGB", (40, 40))
            assert max(image.size) < 451
            scaled = Image.fromarray(np.rot90(np.asarray(image), turns))
        wanted = F.center_crop(F.resize(scaled, [40]), [32])
        found = decoded(images.read(row), SMALL, TURBO)
        np.testing.assert_array_equal(found, np.asarray(wanted).transpose(2, 0, 1))
        whole = decoded(images.read(row), SMALL, Loader())
        assert 0 < np.abs(found.astype(int) - whole).mean() < 8
    png = [decoded(images.read(2), SMALL, loader) for loader in (TURBO, Loader())]
    np.testing.assert_array_equal(*png)


@pytest.mark.parametrize(
    "transform", [Transform(resize=None, crop=(32,)), Transform(resize=(40,), crop=None)]
)
def test_nothing_changes_where_sizes_depend_on_all_pixels(
    photos: Path, transform: Transform
) -> None:
    images = FlatFolder(root=photos).open()
    pixels = [decoded(images.read(0), transform, loader) for loader in (TURBO, Loader())]
    np.testing.assert_array_equal(*pixels)


def test_the_manifest_records_the_difference_and_archives_do_not_mix(
    photos: Path, tmp_path: Path
) -> None:
    config = tiny_extraction(tmp_path / "turbo", dataset=FlatFolder(root=photos))
    turbo = replace(config, loader=replace(config.loader, decoder="turbo"))
    exact = replace(config, archive=tmp_path / "exact")
    made = [Archive.open(extract(one).archive) for one in (turbo, exact)]
    one, two = (np.stack([archive.image(row) for row in range(3)]).astype(int) for archive in made)
    recorded = made[0].manifest.environment["decoder_difference"]
    assert recorded["samples"] == 3
    assert recorded["mean"] == pytest.approx(np.abs(one - two).mean())
    assert recorded["max"] == np.abs(one - two).max()
    assert made[1].manifest.environment["decoder_difference"] == {}
    with pytest.raises(ConfigError, match="another configuration"):
        extract(replace(exact, loader=turbo.loader))
