"""torchvision's datasets: the order of their files, and items of several images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.common.errors import ConfigError
from pipeline.datasets.base import open_dataset
from pipeline.datasets.decoding import Decoding, decode
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.torchvision import TorchvisionDataset
from tests.conftest import photo
from tests.helpers.picture_bytes import png_bytes

LISTED = {  # class → files, further arguments, labels
    "SUN397": ("SUN397/{0}/{0}bbey/sun_{0}.jpg", {}, [(0, "abbey"), (1, "bbbey")]),
    "INaturalist": (
        "2021_valid/00000_A_B_C_D_E_F_G/{0}.jpg", {"version": "2021_valid"}, [(0, ""), (0, "")]
    ),
    "Kitti": ("Kitti/raw/testing/image_2/{0}.png", {"train": False}, [(-1, "")] * 2),
    "Cityscapes": (
        "leftImg8bit/train/{0}/{0}_leftImg8bit.png", {"target_type": "color"}, [(-1, "")] * 2
    ),
    "Omniglot": ("omniglot-py/images_background/{0}/x/1.png", {}, [(0, ""), (1, "")]),
}  # fmt: skip


def grey(seed: int) -> np.ndarray:
    return np.repeat(photo(seed)[..., :1], 3, -1)  # as Omniglot's are read


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # unclosed files
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", LISTED)
def test_samples_are_in_the_same_order_on_every_file_system(
    name: str, reverse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, arguments, labels = LISTED[name]
    for seed, letter in enumerate("ab"):
        path = tmp_path / file.format(letter)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(grey(seed)))
        if name == "Cityscapes":
            (tmp_path / "gtFine/train" / letter).mkdir(parents=True)
            path = tmp_path / f"gtFine/train/{letter}/{letter}_gtFine_color.png"
            path.write_bytes(png_bytes(grey(seed)))
    if name == "SUN397":
        (tmp_path / "SUN397/ClassName.txt").write_text("/a/abbey\n/b/bbbey\n")
    monkeypatch.setattr("torchvision.datasets.Omniglot._check_integrity", lambda _: True)

    def in_order(list_folder: Any) -> Any:
        return lambda *given: iter(sorted(list_folder(*given), key=str, reverse=reverse))

    monkeypatch.setattr(os, "listdir", lambda *path, _=os.listdir: [*in_order(_)(*path)])
    monkeypatch.setattr(Path, "rglob", in_order(Path.rglob))
    images = open_dataset(TorchvisionDataset(name=name, root=str(tmp_path), arguments=arguments))
    assert [(sample.label, sample.label_name) for sample in images.samples] == labels
    for row in range(2):
        np.testing.assert_array_equal(decode(images.read(row), Decoding()), grey(row))


PAIRS = {
    "Sintel": ("Sintel/test/clean/a/{}.png", "12", {"split": "test", "pass_name": "clean"}),
    "InStereo2k": ("InStereo2k/train/a/{}.png", ["left", "right", "left_disp", "right_disp"], {}),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # unclosed files
@pytest.mark.parametrize("name", PAIRS)
def test_a_dataset_of_pairs_does_not_lose_the_second_image(name: str, tmp_path: Path) -> None:
    file, words, arguments = PAIRS[name]
    for seed, word in enumerate(words):
        path = tmp_path / file.format(word)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(photo(seed)))
    source = TorchvisionDataset(name=name, root=str(tmp_path), arguments=arguments)
    with pytest.raises(ConfigError, match="items hold two images each; use a dataset of single"):
        open_dataset(source)


def test_items_of_two_images_and_more() -> None:
    one, two, mask = photo(), photo(1), photo(2)[..., 0]
    pictures = [Image.fromarray(image) for image in (one, two, mask)]
    tensors = [torch.from_numpy(image) for image in (one.transpose(2, 0, 1), two, mask)]
    for first, second in ((one, two), pictures[:2], (tensors[0], tensors[0])):
        with pytest.raises(ConfigError, match="items hold two images each"):
            open_dataset(FromSequence(items=[(first, second, 1)]))
        images = open_dataset(FromSequence(items=[(first, second)]))  # image and target
        np.testing.assert_array_equal(decode(images.read(0), Decoding()), one)
    for first, second in ((one, mask), pictures[::2], tensors[::2], (one, [1, 2]), (one, 3)):
        images = open_dataset(FromSequence(items=[(first, second, 1)]))
        np.testing.assert_array_equal(decode(images.read(0), Decoding()), one)
